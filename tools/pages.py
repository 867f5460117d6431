"""Read notebooks and turn them into Markdown, for the site and for README.md."""

import ast
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.filters import strip_ansi
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from churn_lib import bundle

# Quarto has five callouts; two of them have another name among Zensical's admonitions.
ADMONITIONS = {"important": "info", "caution": "danger"}

TEMPLATE = """{% extends "markdown/index.md.j2" %}
{% block input %}{% if cell.source %}
{{ cell.source | fence(cell.metadata.language or "python") }}
{% endif %}{% endblock %}
{% block stream %}
{{ output.text | fence("text") }}
{% endblock %}
{% block error %}
{{ output.traceback | join("\n") | fence("text") }}
{% endblock %}
{% block data_text %}
{{ output.data["text/plain"] | fence("text") }}
{% endblock %}
{% block data_html %}
{{ output.data["text/html"] | embed }}
{% endblock %}
{% block data_svg %}
![Plot of the code above]({{ output.metadata.filenames["image/svg+xml"] | path2url }})
{% endblock %}
{% block data_png %}
![Plot of the code above]({{ output.metadata.filenames["image/png"] | path2url }})
{% endblock %}
"""


class SiteError(Exception):
    """What keeps the site from being built, one line for each problem."""


@dataclass(frozen=True)
class Page:
    """A notebook and what the site needs to know of it."""

    notebook: str  # path below nbs, such as lib/settings.ipynb
    title: str
    promise: str  # the quote below the title
    opening: str  # what else the cell of the title holds
    signatures: dict[str, str]  # source of the exported classes and functions, by name
    shown: frozenset[str]  # anchors of the names that have an entry on the page

    @property
    def path(self) -> str:
        """Path of the page below the site, without suffix: lib/settings."""
        return nbpath2html(self.notebook).with_suffix("").as_posix()


def read_page(notebook: str) -> Page:
    """Read one notebook; raise SiteError when it is not fit for the site."""
    try:
        cells = nbformat.read(get_config().nbs_path / notebook, as_version=4).cells
        signatures = dict(find_signatures(cells))
    except (OSError, ValueError, SyntaxError, AttributeError, nbformat.ValidationError) as error:
        problem = (str(error).strip() or repr(error)).splitlines()[0]
        raise SiteError(f"nbs/{notebook}: cannot be read: {problem}") from None
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    shown = {*signatures, *re.findall(r"^show_doc\(([\w.]+)", code, re.M)}
    title, promise, opening = read_head(notebook, cells)
    anchors = frozenset(name.lower() for name in shown)
    return Page(notebook, title, promise, opening, signatures, anchors)


def read_head(notebook: str, cells: list[NotebookNode]) -> tuple[str, str, str]:
    """Answer the H1 of the first text cell, the quote below it, and the rest of that cell."""
    head = next((cell.source for cell in cells if cell.cell_type == "markdown"), "").strip()
    found = re.match(r"# +([^\n]+)\n*((?:>[^\n]*\n?)*)(.*)", head, re.S)
    if not found:
        raise SiteError(f"nbs/{notebook}: the first text cell does not begin with '# title'")
    promise = " ".join(line.strip("> ") for line in found[2].splitlines())
    return found[1].strip(), promise.strip(), found[3].strip()


def find_signatures(cells: list[NotebookNode]) -> Iterator[tuple[str, str]]:
    """Yield name and source of each class and function that nbdev documents."""
    for cell in cells:
        if cell.cell_type == "code" and re.match(r"#\| *exports?\b", cell.source):
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                    yield node.name, signature(node, cell.source.splitlines())


def signature(node: ast.ClassDef | ast.FunctionDef, lines: list[str]) -> str:
    """Cut the head of a function, or of a class with its fields and public methods."""
    is_method = node.col_offset > 0
    end = max(first_line(node.body[0]) - 1, node.lineno)
    if is_method and ast.get_docstring(node) is not None:
        end = node.body[0].end_lineno or end
    declares = isinstance(node, ast.FunctionDef) and node.decorator_list and not is_method
    if declares and ast.get_docstring(node) is None:  # its body is part of the declaration
        end = node.end_lineno or end
    parts = ["\n".join(lines[first_line(node) - 1 : end]).rstrip()]
    for member in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(member, ast.Assign | ast.AnnAssign):
            parts += lines[member.lineno - 1 : member.end_lineno]
        elif isinstance(member, ast.FunctionDef) and re.match(r"[^_]|__init__", member.name):
            parts += ["", signature(member, lines)]
    return "\n".join(parts)


def first_line(node: ast.stmt) -> int:
    """Answer the line a statement begins on, decorators included."""
    return min(part.lineno for part in (node, *getattr(node, "decorator_list", [])))


# From a staged notebook to Markdown


@cache
def task_names() -> frozenset[str]:
    """The tasks of the bundle's jobs: words in backticks that name no function."""
    root = get_config().config_path
    if not (root / "databricks.yml").exists():
        return frozenset()
    found = bundle.load("local", root)
    return frozenset(task.task_key for key in found.job_keys for task in found.job(key).tasks)


def unlink_tasks(text: str) -> str:
    """Take the link from a task that a function happens to share its name with; `name()` keeps it."""
    link = re.compile(r"\[(`(\w+)`)\]\([^()\s]*\)")
    return link.sub(lambda found: found[1] if found[2] in task_names() else found[0], text)


def export(staged: Path, page: Page) -> tuple[str, dict[str, bytes]]:
    """Convert a staged notebook to Markdown and the images beside it."""
    notebook = nbformat.read(staged, as_version=4)
    # nbdev puts front matter and a warning about generated files in place of the first cell.
    opening = unlink_tasks(NbdevLookup().linkify(page.opening) or "")
    notebook.cells[:2] = [new_markdown_cell(opening)] if opening else []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            follow_directives(cell)
            show_entries(cell, page)
        elif cell.cell_type == "markdown":
            cell.source = unlink_tasks(cell.source)
    exporter = MarkdownExporter(raw_template=TEMPLATE)
    exporter.register_filter("fence", fence)
    exporter.register_filter("embed", embed)
    folder = {"output_files_dir": f"{posixpath.basename(page.path)}_files"}
    text, resources = exporter.from_notebook_node(notebook, folder)
    return text, dict(resources["outputs"])


def follow_directives(cell: NotebookNode) -> None:
    """Do what the `#|` lines of a cell say, and drop them."""
    options = dict(re.findall(r"^#\| *([\w-]+): *(.*?) *$", cell.source, re.M))
    cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M).strip("\n")
    cell.metadata.pop("execution", None)  # nbdev puts numbers here, nbconvert wants text
    if options.get("output") == "asis":
        for output in cell.outputs:
            if output.output_type == "stream":
                output.update(output_type="display_data", metadata={})
                output.data = {"text/markdown": output.pop("text")}
                del output["name"]
    if "false" in (options.get("include"), options.get("output")):
        cell.outputs = []
    if "false" in (options.get("include"), options.get("echo")):
        cell.source = ""


def show_entries(cell: NotebookNode, page: Page) -> None:
    """Tidy what show_doc answers: an anchor, the signature as written, the docstring."""
    pattern = r"---\n\n(?:\[source\].*\n\n)?(#+) (.*)\n\n```python\n(.*?)\n```\s*(.*)"
    for output in cell.outputs:
        text = output.get("data", {}).get("text/markdown", "")
        if found := re.fullmatch(pattern, text.strip(), re.S):
            level, name, fallback, docstring = found.groups()
            code = fence(page.signatures.get(name, fallback.replace("__main__.", "")), "python")
            docstring = re.sub(r"^\*(.*)\*$", r"\1", docstring, count=1, flags=re.M)
            output.data["text/markdown"] = (
                f'<div class="api" markdown="1">\n\n{level} `{name}` {{#{name.lower()}}}\n\n'
                f"{code}\n\n{docstring}\n\n</div>"
            )


def fence(text: str, language: str) -> str:
    """Put text into a code block, with a fence longer than any inside it."""
    text = strip_ansi(text).strip("\n")
    ticks = "`" * max([3, *(len(found) + 1 for found in re.findall(r"`{3,}", text))])
    return f"{ticks}{language}\n{text}\n{ticks}"


def embed(html: str) -> str:
    """Make the HTML of an output one block that Markdown leaves alone, in the site's style."""
    html = re.sub(r"<style scoped>.*?</style>", "", html, flags=re.S)
    kind = "output dataframe" if 'class="dataframe"' in html else "output"
    # The theme styles a table that has no class of its own.
    html = re.sub(r' border="1" class="dataframe"| style="text-align: right;"', "", html)
    html = re.sub(r"<th([^>]*)>(\s|&nbsp;)*</th>", r"<td\1></td>", html)  # no heading of anything
    html = re.sub(r"\n\s*\n", "\n", html)  # on GitHub a blank line ends the block
    return f'<div class="{kind}">\n{html.strip()}\n</div>'


# From Quarto's Markdown to that of the site and of GitHub


class Writer:
    """Rewrites the Markdown of one page for the site or, with `github`, for README.md."""

    def __init__(self, page: Page, pages: list[Page], github: bool):
        self.page, self.github = page, github
        self.config = get_config()
        self.notebooks = {other.notebook: other for other in pages}
        self.urls = {f"{other.path}.html": other for other in pages}
        self.images: set[str] = set()  # files below nbs that the page shows

    def markdown(self, text: str) -> str:
        """Turn callouts into admonitions, drop other divs, rewrite what is outside code."""
        # A heading that opens a callout is its title.
        text = re.sub(r"^(:::+ *\{.*callout.*)\}\n+#+ +(.+)$", r'\1 title="\2"}', text, flags=re.M)
        lines: list[str] = []
        divs: list[str] = []  # what goes before each line, for each open div
        ticks = ""
        for line in text.splitlines():
            if ticks:
                ticks = "" if re.fullmatch(rf" *{ticks}[`~]* *", line) else ticks
            elif found := re.match(r" *(`{3,}|~{3,})", line):
                ticks = found[1]
                line = re.sub(r"\{\.?(\w+).*\}$", r"\1", line)
            elif found := re.match(r":{3,} *(.*)$", line):
                if found[1]:
                    line, prefix = self.open_div(found[1])
                    lines += [("".join(divs) + part).rstrip() for part in ("", *line.split("\n"))]
                    divs.append(prefix)
                    continue
                divs, line = divs[:-1], ""
            else:
                line = self.prose(line)
            lines.append(("".join(divs) + line).rstrip())
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"

    def open_div(self, attributes: str) -> tuple[str, str]:
        """Answer the first line of a div, and what goes before each line in it."""
        callout = re.search(r"callout-(\w+)", attributes)
        if not callout:
            return "", ""
        kind = callout[1]
        found = re.search(r'title="([^"]*)"', attributes)
        title = found[1] if found else kind.capitalize()
        if self.github:
            return f"> [!{kind.upper()}]" + (f"\n> **{title}**\n> " if found else ""), "> "
        mark = "???" if 'collapse="true"' in attributes else "!!!"
        return f'{mark} {ADMONITIONS.get(kind, kind)} "{title}"', "    "

    def prose(self, line: str) -> str:
        """Rewrite the links of a line and drop Quarto's attributes, except in code spans."""
        anchor = "" if self.github else r" {\2}"
        line = re.sub(r"^(#+ .*?) *\{(#[\w.-]+)[^}]*\}$", rf"\1{anchor}", line)
        line = re.sub(r"^(#+ .*?) *\{[.-][^}]*\}$", r"\1", line)
        line = re.sub(r"(?<!!)\[([^]]*)\]\(([^)\s]+)\)", self.resolve_link, line)
        parts = re.split(r"(`+[^`]*`+)", line)
        for index in range(0, len(parts), 2):
            part = re.sub(r"^\{[.#][^}]*\}", "", parts[index]) if index else parts[index]
            part = re.sub(r"\[([^]]+)\]\{[.#][^}]*\}", r"\1", part)
            part = re.sub(r"(\]\([^)\s]+\))\{[^}]*\}", r"\1", part)
            parts[index] = re.sub(r"(?<=\]\()[^)\s]+(?=\))", lambda url: self.link(url[0]), part)
        return "".join(parts)

    def resolve_link(self, found: re.Match) -> str:
        """Point nbdev's links at notebooks; of a link that leads nowhere keep the words."""
        label, url = found.groups()
        root = urljoin(f"{self.config.doc_host}/", self.config.doc_baseurl)
        path, _, anchor = url.removeprefix(root).lstrip("/").partition("#")
        if page := self.urls.get(path):
            # A method has no entry of its own but its class has; a private name has none.
            entry = anchor if anchor in page.shown else anchor.partition(".")[0]
            notebook = relative(page.notebook, self.page.notebook)
            return f"[{label}]({notebook}#{entry})" if entry in page.shown else label
        # GitHub has the files beside nbs, the site has not.
        target = self.resolve(url)
        beside = target.startswith("../") and (self.config.nbs_path / target).exists()
        return label if beside and not self.github else found[0]

    def link(self, url: str) -> str:
        """Answer where a link of the notebook leads on the site, or from README.md."""
        parts = urlsplit(url)
        if parts.scheme or not parts.path:
            return url
        target = self.resolve(url)
        fragment = f"#{parts.fragment}" if parts.fragment else ""
        page = self.notebooks.get(target)
        if self.github:
            return posixpath.normpath(f"nbs/{target}") + ("" if page else fragment)
        if page:
            return relative(f"{page.path}.md", self.page.path) + fragment.lower()
        if (self.config.nbs_path / target).is_file():
            self.images.add(target)
        return url

    def resolve(self, url: str) -> str:
        """Resolve a link of the notebook to a path below nbs."""
        folder = posixpath.dirname(self.page.notebook)
        return posixpath.normpath(posixpath.join(folder, unquote(urlsplit(url).path)))


def relative(target: str, origin: str) -> str:
    """Write a path as seen from the folder of `origin`."""
    return posixpath.relpath(target, posixpath.dirname(origin) or ".")
