"""The documentation as its readers see it: every page in a real browser, wide, narrow, light and dark."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from tests import browsers
from tests.conftest import ROOT
from tools import real_run
from tools.site import read_pages

# one of each kind
KINDS = (
    "index",
    "tutorials/first_run",
    "how-to/run_a_job",
    "explanations/gate",
    "explanations/rehearsal",
    "reference/commands",
    "reference/tables",
    "jobs/train_and_register",
    "jobs/monitor",
    "lib/gate/checks",
)
SEARCHES = {
    "gate": "explanations/gate",
    "rollback": "how-to/roll_back",
    "drift": "explanations/detection",
    "add a feature": "how-to/change_the_features",
    "your own data": "how-to/load_your_data",
}
NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1200, "height": 900}

pytestmark = pytest.mark.timeout(1_200)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the site that `make docs` has built, or of one that is built now."""
    folder = ROOT / "site"
    sources = [*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("nbs/*.yml"), *ROOT.glob("tools/*.py")]
    newest = max(path.stat().st_mtime for path in sources)
    built = folder / "search.json"
    if not built.exists() or built.stat().st_mtime < newest:
        folder = tmp_path_factory.mktemp("site") / "site"
        command = [sys.executable, "-m", "tools.site", "build", "--out", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)
    with browsers.served(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.browser() as started:
        yield started


def serious(page: Page) -> list[str]:
    """What axe finds that keeps somebody from using the page."""
    ours = {"exclude": [[".jp-InputArea"], [".jp-OutputPrompt"]]}  # colours of nbconvert's own
    found = Axe().run(page, context=ours).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def test_no_page_has_an_error_or_is_wider_than_a_telephone(site: str, browser: Browser) -> None:
    page = browser.new_page(viewport=NARROW)
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(f"{page.url}: {error}"))
    page.on(
        "console", lambda line: line.type == "error" and wrong.append(f"{page.url}: {line.text}")
    )
    page.on("response", lambda got: got.status >= 400 and wrong.append(f"{page.url}: {got.url}"))
    elsewhere: list[str] = []
    page.on("request", lambda asked: asked.url.startswith(site) or elsewhere.append(asked.url))
    pages = [each.path for each in read_pages()]
    assert len(pages) > 100
    for path in pages:
        page.goto(f"{site}/{path}.html")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > NARROW["width"]:
            wrong.append(f"{path}: {width} pixels wide")
        pictures = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        wrong += [f"{path}: no picture {source}" for source in page.evaluate(pictures)]
    assert wrong == []
    assert [each for each in elsewhere if not each.startswith("data:")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_a_page_of_each_kind(site: str, browser: Browser, scheme: str) -> None:
    page = browser.new_page(viewport=WIDE, color_scheme=scheme)
    wrong = {}
    for path in KINDS:
        page.goto(f"{site}/{path}.html")
        page.wait_for_load_state("networkidle")
        if found := serious(page):
            wrong[path] = found
    assert wrong == {}
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, shade.strip("rgba()").split(",")[:3])) > 3 * 128
    assert light == (scheme == "light")


def test_what_readers_type_finds_the_right_page_first(site: str, browser: Browser) -> None:
    page = browser.new_page(viewport=WIDE)
    page.goto(f"{site}/index.html")
    first = {}
    for words, path in SEARCHES.items():
        page.locator(".md-search__button").click()
        page.get_by_role("combobox", name="Search").fill(words)
        page.locator(f'[id$="-results"] a[href*="{path}.html"]').first.wait_for()
        first[words] = page.locator('[id$="-results"] a').first.get_attribute("href")
        page.keyboard.press("Escape")
    found = {words: str(href).partition(f"{site}/")[2] for words, href in first.items()}
    assert {words: href.partition(".html")[0] for words, href in found.items()} == SEARCHES
    page.locator(".md-search__button").click()  # a function is found by its name, too
    page.get_by_role("combobox", name="Search").fill("drift_table")
    page.locator('[id$="-results"] a[href$="lib/monitoring/report.html#drift_table"]').wait_for()


def test_the_reports_of_jobs_can_be_used_by_everybody(browser: Browser, tmp_path: Path) -> None:
    real_run.copy(tmp_path / "run")
    churn = Path(sys.executable).parent / "churn"
    known = {**os.environ, "CHURN_SETTINGS": str(tmp_path / "run" / "settings.ini")}
    subprocess.run([churn, "report"], env=known, check=True, capture_output=True)
    store = tmp_path / "run" / ".churn"
    made = [*store.glob("runs/validation_job/*/*.html"), *store.glob("runs/*/*/monitor.html")]
    pages = [store / "runs" / "index.html", *made]
    assert len(pages) >= 3
    page = browser.new_page(viewport=WIDE)
    wrong: dict[str, list[str]] = {}
    page.on("pageerror", lambda error: wrong.setdefault("error", []).append(str(error)))
    with browsers.served(store) as address:
        for path in pages:
            page.goto(f"{address}/{path.relative_to(store).as_posix()}")
            if found := serious(page):
                wrong[path.name] = found
    assert wrong == {}
