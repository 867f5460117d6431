"""Pages: what comes from data is shown as text, and a document needs nothing from elsewhere."""

import re
import shutil
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from churn_lib import pages
from churn_lib.pages import Section
from tools import wheel

ROOT = Path(__file__).parents[1]
HOSTILE = "<script>alert('\"&')</script>"


class Parts(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def hostile_section() -> Section:
    figure, _ = plt.subplots(figsize=(1, 1))
    plt.close(figure)
    return Section(
        HOSTILE,
        [HOSTILE],
        pages.table([HOSTILE, "n"], [(HOSTILE, pages.mark(HOSTILE, HOSTILE))], numbers=["n"]),
        {HOSTILE: HOSTILE},
        [pages.picture(figure, HOSTILE)],
        [HOSTILE],
        tone=HOSTILE,
    )


@pytest.mark.parametrize("whole", [False, True])
def test_text_from_data_never_becomes_markup(whole: bool) -> None:
    part = hostile_section()
    page = pages.document(HOSTILE, part) if whole else part._repr_html_()
    parts = Parts(page)
    assert "script" not in parts.tags
    # heading, paragraph, title and cell of the table, mark, name and value of the fact, note
    assert "".join(parts.text).count(HOSTILE) == 8 + whole
    assert parts.tags.count("td") == 2 and parts.tags.count("img") == 1


def test_a_page_is_plain_text_to_those_who_add_to_it() -> None:
    assert type(pages.document("title")) is str
    assert type(Section("heading")._repr_html_()) is str
    assert type(pages.fragment(Section("heading"))) is str


def test_a_document_needs_nothing_from_elsewhere() -> None:
    page = pages.document("title", hostile_section())
    assert not re.search(r"https?:|<link|@import|url\(", page)
    assert page.count("<style>") == 1


def test_what_is_empty_is_left_out() -> None:
    assert str(Section().__html__()) == "<section></section>"
    assert "<h" not in str(Section(paragraphs=["only this"]).__html__())


def test_figures_go_to_the_right_in_head_and_body() -> None:
    shown = pages.table(["name", "value"], [("a", "1"), ("b", "2")], numbers=["value"])
    assert shown.count('class="number"') == 3
    assert "<td>a</td>" in shown


def test_the_wheel_carries_the_template_and_the_style_sheet(tmp_path: Path) -> None:
    for path in wheel.sources(ROOT):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    names = zipfile.ZipFile(wheel.build(tmp_path)).namelist()
    assert {"churn_lib/templates/page.html", "churn_lib/templates/style.css"} <= set(names)
