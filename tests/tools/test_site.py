"""The site and README.md, built for a tiny project that has one of everything."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tools import pages

ROOT = Path(__file__).parents[2]
PNG = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
        "0000000049454e44ae426082"
    )
).decode()

PYPROJECT = """
[project]
name = "tiny-lib"
description = "A tiny project."

[tool.nbdev]
lib_path = "tiny_lib"
nbs_path = "nbs"
title = "Tiny"
strip_libs = "tiny_lib"
"""

CORE = """#| export
def double(
    number: int,  # any number
) -> int:  # twice as much
    "Double a `number`; the inverse is `_half`."
    return 2 * number


class Scale:
    "A factor with a name."

    factor: int = 2  # what to multiply by

    def apply(self, number: int) -> int:
        "The `number` times the factor."
        return self.factor * number
"""

NAVIGATION = """
- Home: [index]
- Tutorials: [tutorials/lesson]
- Jobs: [jobs/01_load, jobs/02_train]
- Library:
  - lib/core
"""

LESSON = """## Start here {#start .unnumbered}

Call `double` or `Scale.apply`, never `_half`. Read [core](../lib/core.ipynb#double) or [the job](../jobs/01_load.ipynb).
The [margin]{.aside} and the `words`{.python} are Quarto's, the [terms](../../LICENSE) lie beside nbs.

::: {.callout-warning title="Mind the step"}
It is `high`.

```python
careful = True
```
:::

::: {.column-margin}
Beside the text.
:::
"""


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tools.site inside `project`."""
    return subprocess.run(
        [sys.executable, "-m", "tools.site", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(project)])},
        capture_output=True,
        text=True,
    )


def save(project: Path, name: str, *cells: nbformat.NotebookNode) -> None:
    """Write a notebook."""
    path = project / "nbs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def title(heading: str, promise: str = "A promise.") -> nbformat.NotebookNode:
    """Write the first cell of a page."""
    return new_markdown_cell(f"# {heading}\n\n> {promise}")


def shown(source: str, **data: str) -> nbformat.NotebookNode:
    """Write a code cell with one output; `text_html` stands for text/html."""
    mime = {key.replace("_", "/"): value for key, value in data.items()}
    return new_code_cell(source, outputs=[new_output("display_data", mime)])


def install_tiny_lib(project: Path) -> None:
    """Give `project` a package that nbdev finds by its entry point."""
    symbols = {
        f"tiny_lib.core.{name}": (f"lib/core.html#{name.lower()}", "tiny_lib/core.py")
        for name in ("double", "_half", "Scale", "Scale.apply")
    }
    index = {
        "settings": {"branch": "main", "doc_baseurl": "/", "doc_host": "", "git_url": ""},
        "syms": {"tiny_lib.core": symbols},
    }
    (project / "tiny_lib").mkdir()
    (project / "tiny_lib" / "__init__.py").touch()
    (project / "tiny_lib" / "core.py").write_text(CORE)
    (project / "tiny_lib" / "_modidx.py").write_text(f"d = {index!r}")
    info = project / "tiny_lib-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-lib\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[nbdev]\ntiny_lib = tiny_lib._modidx:d\n")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a site that was built over an older one."""
    project = tmp_path_factory.mktemp("project")
    (project / "pyproject.toml").write_text(PYPROJECT)
    (project / "LICENSE").touch()
    install_tiny_lib(project)
    (project / "nbs").mkdir()
    (project / "nbs/nav.yml").write_text(NAVIGATION)
    save(
        project,
        "index.ipynb",
        title("Tiny home", "Small, but `all` there."),
        new_markdown_cell(
            "Begin with the [lesson](tutorials/lesson.ipynb#start) under its [terms](../LICENSE).\n\n"
            "::: {.callout-tip}\nShort is good.\n:::"
        ),
        shown("draw()", image_png=PNG),
    )
    save(
        project,
        "tutorials/lesson.ipynb",
        title("The lesson"),
        new_markdown_cell(LESSON),
        shown("plot()", image_png=PNG, text_plain="<Figure>"),
        shown(
            "frame",
            text_html='<div>\n<style scoped>.x {}</style>\n\n<table border="1" class="dataframe">'
            "\n<tr><td>cell</td></tr>\n</table>\n</div>",
        ),
        new_code_cell(
            "#| output: asis\n#| echo: false\nprint('secret')",
            outputs=[new_output("stream", name="stdout", text="**bold** words")],
        ),
        shown("1 + 1", text_plain="```2```\n```"),
        new_code_cell("#| hide\nhidden = True"),
    )
    save(
        project,
        "jobs/02_train.ipynb",
        title("Train", "One\n> promise.\n\nCall `double` first."),
        new_code_cell("train()"),
    )
    save(project, "jobs/01_load.ipynb", title("Load"), new_code_cell("load()"))
    (project / "nbs/jobs/01_load.py").write_text("# %%\nload()\n")
    save(project, "lib/core.ipynb", title("core"), new_code_cell(CORE))
    (project / "site").mkdir()
    (project / "site" / "search.json").touch()
    (project / "site" / "stale.html").touch()
    result = run(project, "build")
    assert result.returncode == 0, result.stderr
    return project


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """A copy of the project, to be broken."""
    shutil.copytree(project, tmp_path / "project")
    return tmp_path / "project"


def page(project: Path, name: str) -> str:
    """Read the article of a built page."""
    html = (project / "site" / name).read_text()
    return html[html.index("<article") : html.index("</article>")]


def test_page_opens_with_title_and_promise(project):
    html = (project / "site/index.html").read_text()
    assert re.search(r"<h1[^>]*>Tiny home<", html)
    assert '<p class="subtitle">Small, but <code>all</code> there.</p>' in html
    assert '<meta name="description" content="Small, but all there."' in html


def test_text_below_the_promise_is_kept(project):
    html = page(project, "jobs/train.html")
    assert '<p class="subtitle">One promise.</p>' in html
    assert '<p>Call <a href="../lib/core.html#double"><code>double</code></a> first.</p>' in html


def test_navigation_follows_the_sections_and_leaves_out_empty_ones(project):
    html = (project / "site/index.html").read_text()
    labels = [part.strip() for part in re.findall(r"md-tabs__link[^>]*>([^<]*)<", html)]
    assert labels == ["Home", "Tutorials", "Jobs", "Library"]
    job = (project / "site/jobs/load.html").read_text()
    sidebar = job[job.index("md-nav--primary") :]
    assert sidebar.index("load.html") < sidebar.index("train.html")


def test_llms_txt_names_every_page_and_leads_to_its_text(project):
    text = (project / "site/llms.txt").read_text()
    assert text.startswith("# ") and "\n## Jobs\n" in text
    links = re.findall(r"^- \[([^]]+)\]\(([^)]+)\)(?:: (.+))?$", text, re.M)
    assert links[2:4] == [
        ("Load", "jobs/load.md", "A promise."),
        ("Train", "jobs/train.md", "One promise."),
    ]
    pages = {
        path.with_suffix(".md")
        for path in (project / "site").rglob("*.html")
        if path.name != "404.html"
    }
    assert {project / "site" / target for _, target, _ in links} == pages
    assert "# The lesson" in (project / "site/tutorials/lesson.md").read_text()


def test_stale_pages_disappear(project):
    assert not (project / "site/stale.html").exists()
    assert sorted(path.name for path in project.glob("site*")) == ["site"]


def test_plot_is_a_file_beside_the_page(project):
    source = re.search(
        r'<img[^>]*src="(lesson_files/[^"]+)"', page(project, "tutorials/lesson.html")
    )
    assert (project / "site/tutorials" / source[1]).read_bytes() == base64.b64decode(PNG)
    assert "&lt;Figure&gt;" not in page(project, "tutorials/lesson.html")


def test_data_frame_stays_a_table_in_the_style_of_the_site(project):
    html = page(project, "tutorials/lesson.html")
    assert re.search(r'<div class="output dataframe">\s*<div>\s*<table>\s*<tr><td>cell', html)
    assert "style scoped" not in html


def test_backticks_lead_to_the_entry_of_a_public_name_only(project):
    html = page(project, "tutorials/lesson.html")
    assert '<a href="../lib/core.html#double"><code>double</code></a>' in html
    assert '<a href="../lib/core.html#scale"><code>Scale.apply</code></a>' in html
    assert "never <code>_half</code>" in html


def test_a_task_that_shares_its_name_with_a_function_is_no_link(monkeypatch):
    monkeypatch.setattr(pages, "task_names", lambda: frozenset({"monitor"}))
    text = "[`monitor`](a.ipynb), [`monitor()`](a.ipynb) and [`alert`](b.ipynb#alert)"
    assert pages.unlink_tasks(text) == text.replace("[`monitor`](a.ipynb)", "`monitor`")


def test_entry_shows_the_signature_as_written(project):
    html = page(project, "lib/core.html")
    assert re.search(r'<h3 id="double"><code>double</code>', html)
    text = re.sub(r"<[^>]+>", "", html)
    assert "    number: int,  # any number\n) -&gt; int:  # twice as much" in text
    assert "Double a number; the inverse is _half." in text
    assert "return 2 * number" not in text


def test_a_declaration_is_shown_whole():
    source = '#| export\n@feature("visits so far", "visits")\ndef visits(events):\n    return events.count()'
    cells = [new_code_cell(source)]
    assert dict(pages.find_signatures(cells)) == {"visits": source.removeprefix("#| export\n")}


def test_entry_of_a_class_shows_fields_and_methods(project):
    text = re.sub(r"<[^>]+>", "", page(project, "lib/core.html"))
    assert (
        "class Scale:\n    factor: int = 2  # what to multiply by\n\n"
        "    def apply(self, number: int) -&gt; int:\n"
        '        "The `number` times the factor."' in text.replace("&quot;", '"')
    )
    assert "A factor with a name." in text
    assert "self.factor" not in text


def test_callout_becomes_an_admonition(project):
    html = page(project, "tutorials/lesson.html")
    assert re.search(
        r'<div class="admonition warning">\s*<p class="admonition-title">Mind the', html
    )


def test_no_syntax_of_quarto_or_nbdev_is_left(project):
    html = page(project, "tutorials/lesson.html")
    for leak in (
        "#|",
        ":::",
        ".aside",
        "{.",
        "secret",
        "hidden = True",
        "show_doc",
        "AUTOGENERATED",
    ):
        assert leak not in html
    assert "<strong>bold</strong> words" in html
    assert "The margin and the <code>words</code>" in html
    assert "the terms lie beside nbs" in html
    assert 'id="start"' in html


def test_output_with_backticks_stays_one_block(project):
    assert "```2```\n```" in re.sub(r"<[^>]+>", "", page(project, "tutorials/lesson.html"))


def test_pages_load_nothing_from_the_network(project):
    pages = list((project / "site").rglob("*.html"))
    assert len(pages) == 6  # with 404.html
    for path in pages:
        assert not re.findall(r"<(?!a\b)[^>]+(?:src|href)=.?(?:https?:)?//[^>]+>", path.read_text())


def test_problems_are_named_and_the_old_site_stays(copied):
    save(
        copied,
        "index.ipynb",
        title("Tiny home"),
        new_markdown_cell(
            "[a](lib/none.ipynb) [b](lib/core.ipynb#none) [c](#none)\n\n"
            "![d](https://example.com/d.png) ![e](none.png)"
        ),
    )
    before = {path: path.read_bytes() for path in copied.glob("site/**/*") if path.is_file()}
    result = run(copied, "build")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        "nbs/index.ipynb: broken link lib/none.ipynb",
        "nbs/index.ipynb: broken anchor lib/core.html#none",
        "nbs/index.ipynb: broken anchor #none",
        "nbs/index.ipynb: loads https://example.com/d.png from the network",
        "nbs/index.ipynb: broken link none.png",
    ]
    after = {path: path.read_bytes() for path in copied.glob("site/**/*") if path.is_file()}
    assert after == before


def test_failing_export_names_its_notebook(copied):
    save(copied, "lib/core.ipynb", title("core"), new_code_cell("#| export\nmissing + 1"))
    result = run(copied, "build")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "nbs/lib/core.ipynb: nbdev cannot stage it: NameError: name 'missing' is not defined"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{broken", "cannot be read: Notebook does not appear to be JSON: '{broken'"),
        (
            json.dumps(new_notebook(cells=[new_markdown_cell("Words.")])),
            "the first text cell does not begin with '# title'",
        ),
    ],
)
def test_unfit_notebook_is_named_in_one_line(copied, content, problem):
    (copied / "nbs/jobs/01_load.ipynb").write_text(content)
    result = run(copied, "build")
    assert result.returncode == 1
    assert result.stderr == f"nbs/jobs/01_load.ipynb: {problem}\n"


def test_two_notebooks_for_one_page_are_refused(copied):
    save(copied, "jobs/03_train.ipynb", title("Train again"))
    nav = (copied / "nbs/nav.yml").read_text().replace("02_train", "02_train, jobs/03_train")
    (copied / "nbs/nav.yml").write_text(nav)
    result = run(copied, "build")
    assert result.returncode == 1
    assert "nbs/jobs/03_train.ipynb: makes the same page as nbs/jobs/02_train" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("[jobs/01_load, jobs/02_train]", "[jobs/02_train]", "write jobs/01_load into nbs/nav.yml"),
        ("lib/core", "lib/core\n  - lib/gone", "there is no notebook nbs/lib/gone.ipynb"),
        ("lib/core", "lib/core\n  - lib/core", "write lib/core into nbs/nav.yml once"),
    ],
)
def test_a_page_stands_in_the_navigation_exactly_once(copied, old, new, problem):
    path = copied / "nbs/nav.yml"
    path.write_text(path.read_text().replace(old, new))
    result = run(copied, "build")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert problem in result.stderr


def test_a_scratch_notebook_of_jupyter_is_no_page_and_not_committed(copied):
    save(copied, "Untitled1.ipynb", title("Scratch"))
    result = run(copied, "build")
    assert result.returncode == 0, result.stderr
    assert not list((copied / "site").glob("*ntitled*"))
    assert "Untitled*.ipynb" in (ROOT / ".gitignore").read_text().splitlines()


def test_folder_that_is_no_site_is_not_replaced(copied):
    result = run(copied, "build", "--out", "nbs")
    assert (result.returncode, (copied / "nbs/index.ipynb").exists()) == (1, True)
    assert "nbs: exists and is not a site" in result.stderr


def test_readme_is_the_home_page_and_its_drift_is_found(copied):
    assert run(copied, "readme").returncode == 0
    readme = (copied / "README.md").read_text()
    assert "# Tiny home\n\n> Small, but `all` there.\n" in readme
    assert "[lesson](nbs/tutorials/lesson.ipynb) under its [terms](LICENSE)" in readme
    assert "> [!TIP]\n> Short is good.\n\n```python" in readme
    image = re.search(r"!\[[^]]+\]\((nbs/index_files/.*)\)", readme)
    assert (copied / image[1]).read_bytes() == base64.b64decode(PNG)
    assert run(copied, "readme", "--check").returncode == 0
    (copied / "README.md").write_text(readme + "One more line.\n")
    result = run(copied, "readme", "--check")
    assert result.returncode == 1
    assert result.stderr == "README.md is out of step with nbs/index.ipynb: run make prepare\n"
