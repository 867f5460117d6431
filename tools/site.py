"""Build the documentation site and README.md from the notebooks in nbs/.

nbdev stages the notebooks, nbconvert writes them as Markdown, Zensical renders the pages.
"""

import argparse
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import yaml
from nbconvert.filters import strip_ansi
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.processors import FilterDefaults
from nbdev.serve import proc_nbs
from nbdev.serve_drv import exec_nb
from nbformat.v4 import new_markdown_cell

from tools import real_run
from tools.pages import Page, SiteError, Writer, export, read_page

NAVIGATION = "nav.yml"  # in nbs: every page once, in reading order
SEARCHED = "search.yml"  # in nbs: words that lead to a page, whatever it is called

STYLE = """
.md-grid { max-width: 68rem; }
.md-typeset pre > code { font-size: .62rem; }
.md-typeset .subtitle { color: var(--md-default-fg-color--light); font-size: 1.15em;
  margin-top: -1.2em; }
.md-typeset h3 code, .md-nav code { background: none; box-shadow: none; padding: 0; }
.md-typeset .api > .highlight pre { border-left: .15rem solid var(--md-typeset-a-color); }
.md-typeset .language-text pre { border-left: .15rem solid var(--md-default-fg-color--lighter); }
.md-typeset .language-text code { background: none; }
.md-typeset .output { overflow-x: auto; }
.md-typeset .dataframe table:not([class]) :is(th, td):not([align]) { min-width: 0;
  font-variant-numeric: tabular-nums; padding: .4em 1em; text-align: right; }
.md-typeset .dataframe tbody th { border-top: .05rem solid var(--md-typeset-table-color); }
.md-typeset td code { word-break: normal; overflow-wrap: normal; white-space: nowrap; }
.md-typeset img { border-radius: .2rem; }
"""

# what scrolls can be reached with the keyboard; the theme wraps tables after the page has come
SCRIPT = """
const scrolls = (part) => {
  const { overflowX, overflowY } = getComputedStyle(part);
  const may = (how) => how === "auto" || how === "scroll";
  return (part.scrollWidth > part.clientWidth && may(overflowX)) ||
    (part.scrollHeight > part.clientHeight && may(overflowY));
};
const reach = () => document.querySelectorAll(".md-typeset__scrollwrap, .output, .output div, .output pre")
  .forEach((part) => { if (scrolls(part)) part.tabIndex = 0; });
addEventListener("load", reach);
addEventListener("resize", reach);
new MutationObserver(reach).observe(document.body, { childList: true, subtree: true });
"""


def navigation() -> list:
    """Read nbs/nav.yml: paths of notebooks without suffix, and headings over lists of them."""
    return read_yaml(NAVIGATION)


def read_yaml(name: str) -> Any:
    """Read a file of nbs."""
    try:
        return yaml.safe_load((get_config().nbs_path / name).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SiteError(f"nbs/{name}: cannot be read: {error}") from None


def searched_words(pages: list[Page]) -> dict[str, str]:
    """Words that lead to a page, by the page's path."""
    if not (get_config().nbs_path / SEARCHED).exists():
        return {}
    by_notebook, found = {page.notebook: page.path for page in pages}, {}
    for stem, words in read_yaml(SEARCHED).items():
        if f"{stem}.ipynb" not in by_notebook:
            raise SiteError(f"nbs/{SEARCHED}: there is no page {stem}; correct the path")
        found[by_notebook[f"{stem}.ipynb"]] = ", ".join(words)
    return found


def leaves(entries: list) -> Iterator[str]:
    """Yield the notebooks of a navigation in their order."""
    for entry in entries:
        for below in entry.values() if isinstance(entry, dict) else ():
            yield from leaves(below)
        if isinstance(entry, str):
            yield entry


def read_pages() -> list[Page]:
    """Read every notebook of the site, in the order of the navigation."""
    order = [f"{leaf}.ipynb" for leaf in leaves(navigation())]
    # what Jupyter calls a new notebook is a scratch pad, which git ignores, too
    there = sorted(
        path.relative_to(get_config().nbs_path).as_posix()
        for path in nbglob(as_path=True)
        if not path.name.startswith("Untitled")
    )
    for notebook in there:
        if order.count(notebook) != 1:
            stem = notebook.removesuffix(".ipynb")
            raise SiteError(f"nbs/{notebook}: write {stem} into nbs/{NAVIGATION} once")
    for notebook in order:
        if notebook not in there:
            raise SiteError(
                f"nbs/{NAVIGATION}: there is no notebook nbs/{notebook}; correct the path"
            )
    pages: dict[str, Page] = {}
    for page in map(read_page, order):
        other = pages.setdefault(page.path, page)
        if other is not page:
            raise SiteError(f"nbs/{page.notebook}: makes the same page as nbs/{other.notebook}")
    return list(pages.values())


# The site


def build(out: Path) -> None:
    """Build the site of all notebooks into `out`."""
    if out.exists() and not (out / "search.json").exists():
        raise SiteError(f"{out}: exists and is not a site; remove it or choose another --out")
    pages = read_pages()
    print(f"staging {len(pages)} notebooks")
    staged = stage(pages)
    show_runs(pages, staged)
    project = staged / "zensical"
    for page in pages:
        write_page(page, pages, staged, project / "docs")
    (project / "docs" / "style.css").write_text(STYLE, encoding="utf-8")
    (project / "docs" / "script.js").write_text(SCRIPT, encoding="utf-8")
    (project / "mkdocs.yml").write_text(yaml.safe_dump(zensical_config(pages), sort_keys=False))
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "mkdocs.yml"]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True)
    site = project / "site"
    problems = list(find_problems(pages, site)) if (site / "search.json").exists() else []
    if result.returncode and not problems:
        problems = [strip_ansi(result.stdout + result.stderr)]
    if problems:
        raise SiteError("\n".join(problems))
    order_search(pages, site / "search.json")
    for page in pages:  # as Markdown, too, for programs that read
        shutil.copy(project / "docs" / f"{page.path}.md", site / f"{page.path}.md")
    (site / "llms.txt").write_text(llms_txt(pages), encoding="utf-8")
    publish(site, out)
    print(f"built {out} with {len(pages)} pages")


def stage(pages: list[Page]) -> Path:
    """Stage every notebook with nbdev; an error names the notebook."""
    try:
        return proc_nbs(force=True)
    except Exception as error:  # whatever the exported cells of a notebook raise
        lines = str(error).strip().splitlines() or [repr(error)]
        titles = {f"Error in notebook: {page.title} in cell ": page.notebook for page in pages}
        where = next((titles[start] for start in titles if lines[0].startswith(start)), "")
        raise SiteError(f"nbs/{where}: nbdev cannot stage it: {lines[-1]}") from None


def show_runs(pages: list[Page], staged: Path) -> None:
    """Put what a run of the pipeline leaves in the job notebooks into their staged copies."""
    if not (get_config().config_path / "databricks.yml").exists():  # no jobs, then
        return
    try:
        for page in pages:
            if page.notebook.startswith("jobs/"):
                made = real_run.outputs(get_config().nbs_path / page.notebook)
                notebook = nbformat.read(staged / page.notebook, as_version=4)
                for cell in notebook.cells:
                    if cell.cell_type == "code":
                        cell.outputs = made.get(cell.id, [])
                notebook.cells.insert(2, new_markdown_cell(real_run.REMARK))
                nbformat.write(notebook, staged / page.notebook)
        if problem := real_run.problem():
            raise SiteError(problem)
    except real_run.RealRunError as error:
        raise SiteError(str(error)) from None


def write_page(page: Page, pages: list[Page], staged: Path, docs: Path) -> None:
    """Write a page as Markdown with its images beside it."""
    text, images = export(staged / page.notebook, page)
    writer = Writer(page, pages, github=False)
    body = writer.markdown(text)
    head = yaml.safe_dump({"title": plain(page.title), "description": plain(page.promise)})
    subtitle = f"\n{page.promise}\n{{ .subtitle }}\n" if page.promise else ""
    files = {f"{page.path}.md": f"---\n{head}---\n\n# {page.title}\n{subtitle}\n{body}".encode()}
    folder = posixpath.dirname(page.path)
    files |= {posixpath.join(folder, name): image for name, image in images.items()}
    files |= {name: (staged / name).read_bytes() for name in writer.images}
    for name, content in files.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_bytes(content)


def plain(text: str) -> str:
    """Drop the marks of code from a title."""
    return text.replace("`", "")


def zensical_config(pages: list[Page]) -> dict:
    """Configure Zensical: our navigation, a palette toggle, nothing from the network."""
    config = get_config()
    by_notebook = {page.notebook: page for page in pages}

    def entry(item: str | dict) -> dict:
        if isinstance(item, dict):
            return {label: [entry(below) for below in items] for label, items in item.items()}
        page = by_notebook[f"{item}.ipynb"]
        return {plain(page.title): f"{page.path}.md"}

    palettes = [
        ("(prefers-color-scheme)", "default", "sun-moon", "Switch to light mode"),
        ("(prefers-color-scheme: light)", "default", "sun", "Switch to dark mode"),
        ("(prefers-color-scheme: dark)", "slate", "moon", "Switch to system preference"),
    ]
    return {
        "site_name": config.title,
        "site_description": config.description,
        "use_directory_urls": False,
        "nav": [entry(item) for item in navigation()],
        "extra_css": ["style.css"],
        "extra_javascript": ["script.js"],
        "theme": {
            "font": False,
            "features": [
                *("content.code.copy", "navigation.tabs", "navigation.sections"),
                *("navigation.footer", "toc.follow"),
            ],
            "palette": [
                {
                    "media": media,
                    "scheme": scheme,
                    "toggle": {"icon": f"lucide/{icon}", "name": name},
                }
                for media, scheme, icon, name in palettes
            ],
        },
        # Neither Mermaid nor MathJax: the theme would fetch them from the network.
        "markdown_extensions": [
            *("admonition", "attr_list", "def_list", "footnotes", "md_in_html", "tables"),
            *("pymdownx.details", "pymdownx.superfences"),
            {"pymdownx.highlight": {"pygments_lang_class": True}},
            {"toc": {"permalink": True}},
        ],
    }


def order_search(pages: list[Page], path: Path) -> None:
    """Let guides come before the library, and the words of nbs/search.yml lead to their pages.

    Zensical's search holds a word in a title far above one in the text, and has no weights to set.
    """
    index, words = json.loads(path.read_text(encoding="utf-8")), searched_words(pages)
    library = {f"{page.path}.html" for page in pages if page.notebook.startswith("lib/")}
    for item in index["items"]:
        location = item["location"].partition("#")[0]
        if location in library:  # the title stays in sight, as the first words of the text
            item["text"] = f"<p>{item['title']}</p> {item['text']}"
            item["title"] = ""
        elif found := words.get(item["location"].removesuffix(".html")):
            item["title"] = f"{found.capitalize()}: {item['title']}"
    path.write_text(json.dumps(index), encoding="utf-8")


def llms_txt(pages: list[Page]) -> str:
    """All pages with what each is about, as https://llmstxt.org wants it."""
    config, by_notebook = get_config(), {page.notebook: page for page in pages}
    lines = [f"# {config.title}", "", f"> {config.description}"]
    for section in navigation():
        for heading, entries in section.items():
            lines += ["", f"## {heading}", ""]
            for leaf in leaves(entries):
                page = by_notebook[f"{leaf}.ipynb"]
                about = f": {plain(page.promise)}" if page.promise else ""
                lines.append(f"- [{plain(page.title)}]({page.path}.md){about}")
    return "\n".join(lines) + "\n"


def find_problems(pages: list[Page], site: Path) -> Iterator[str]:
    """Yield a line for each broken link and each resource from the network."""
    files = {(site / f"{page.path}.html").resolve(): page for page in pages}
    html = {file: file.read_text(encoding="utf-8") for file in files}
    anchors = {file: {"", *re.findall(r'\sid="([^"]+)"', html[file])} for file in files}
    for file, page in files.items():
        found = re.findall(r"""<(\w+)\b[^>]*?\s(?:href|src)=["']?([^"'\s>]+)""", html[file])
        for tag, url in dict.fromkeys(found):
            parts = urlsplit(url)
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if parts.scheme or parts.netloc:
                if tag != "a" and parts.scheme != "data":
                    yield f"nbs/{page.notebook}: loads {url} from the network"
            elif not target.exists():
                yield f"nbs/{page.notebook}: broken link {url}"
            elif unquote(parts.fragment) not in anchors.get(target, {parts.fragment}):
                yield f"nbs/{page.notebook}: broken anchor {url}"


def publish(built: Path, out: Path) -> None:
    """Put the built site in place of the old one, which stays until the new one is there."""
    new, old = out.with_name(f"{out.name}.new"), out.with_name(f"{out.name}.old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.move(built, new)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


# README.md


def readme(check: bool) -> None:
    """Write README.md from nbs/index.ipynb, or with `check` refuse one that is out of step."""
    files = readme_files()
    if check and any(not path.exists() or path.read_bytes() != files[path] for path in files):
        raise SiteError("README.md is out of step with nbs/index.ipynb: run make prepare")
    for path, content in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def readme_files() -> dict[Path, bytes]:
    """Answer README.md and the plots it shows."""
    config = get_config()
    pages = read_pages()
    page = read_page("index.ipynb")
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / page.notebook
        exec_nb(config.nbs_path / page.notebook, staged, FilterDefaults)
        text, images = export(staged, page)
    body = Writer(page, pages, github=True).markdown(text)
    head = f"<!-- Made from nbs/index.ipynb: edit the notebook. -->\n\n# {page.title}\n\n"
    files = {config.config_path / "README.md": f"{head}> {page.promise}\n\n{body}".encode()}
    return files | {config.nbs_path / name: image for name, image in images.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; answer the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.site", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("build", help="build the site")
    command.add_argument("--out", type=Path, default=Path("site"), help="folder of the site")
    command.set_defaults(run=lambda options: build(options.out))
    command = commands.add_parser("readme", help="write README.md")
    command.add_argument("--check", action="store_true", help="only compare")
    command.set_defaults(run=lambda options: readme(options.check))
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
