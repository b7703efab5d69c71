"""The report page driven in a browser: ordered, filtered, asked where a number comes from; on a phone and in the dark.

Needs the extra ``browser`` and a Chromium (``chromium`` or ``google-chrome`` on the path).
"""

import shutil
import time

import pytest
from report_tables import harmful, large, small

from reproductions.report_page import write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for name in NAMES if (found := shutil.which(name))), "")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="needs a Chromium on the path"),
    pytest.mark.slow,
]
SIZES = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}
SECONDS = 2.0
"""Within which a page of 10,000 numbers is there."""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser):
    """A function that opens the page of a results folder; afterwards it must have been quiet and asked for nothing."""
    said, asked, pages = [], [], []

    def open_page(results, size="desktop", scheme="light"):
        page = browser.new_page(viewport=SIZES[size], color_scheme=scheme)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(write_report(results).as_uri())
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def heads(page):
    return page.locator("#deepemd section.table").first.locator("tbody th").all_inner_texts()


def names(page):
    return [head.split("\n")[0] for head in heads(page)]


def test_columns_order_rows(opened, tmp_path):
    page = opened(small(tmp_path))
    assert names(page) == ["EMD", "pooled", "Ω ↔ ω"]
    column = page.locator("#deepemd th", has_text="1-shot").first
    column.get_by_role("button").click()
    assert names(page) == ["pooled", "EMD", "Ω ↔ ω"], "9 before 10 before 50: as numbers"
    assert column.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")  # the head is still in focus
    assert names(page) == ["Ω ↔ ω", "EMD", "pooled"]
    assert column.get_attribute("aria-sort") == "descending"
    page.locator("#deepemd th", has_text="5-shot").first.get_by_role("button").click()
    assert names(page)[-1] == "Ω ↔ ω", "what is missing stands last"
    page.keyboard.press("Enter")
    assert names(page)[-1] == "Ω ↔ ω"


def test_filters_leave_what_is_asked_for(opened, tmp_path):
    page = opened(small(tmp_path))
    page.locator("#verdict").select_option("differs")
    assert names(page) == ["Ω ↔ ω"]
    assert page.locator("#found").inner_text() == "1 numbers"
    page.get_by_role("button", name="Reset").click()
    page.locator("#tier").select_option("paper")
    assert names(page) == ["Ω ↔ ω"]
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("searchbox").fill("POOL")
    assert names(page) == ["pooled"]
    page.get_by_role("searchbox").fill("no such row")
    assert not page.locator("#deepemd").is_visible()
    page.get_by_role("button", name="Reset").click()
    assert len(names(page)) == 3


def test_a_number_says_where_it_comes_from(opened, tmp_path):
    page = opened(small(tmp_path))
    cell = page.locator("#deepemd td.number button").first
    cell.hover()
    assert "9 … 11; n = 600" in page.locator("#hint").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#hint").is_visible()
    cell.focus()
    assert page.locator("#hint").is_visible()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    shown = dialog.inner_text()
    for words in ("EMD, 1-shot", "10.00 ± 1.00", "way=5", "is not here", "results/deepemd/few_shot_digits.csv"):
        assert words in shown
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert cell.evaluate("button => button === document.activeElement"), "back where the reader was"


def test_text_of_files_is_text(opened, tmp_path):
    page = opened(harmful(tmp_path))
    page.locator("#deepemd td.number button").first.click()
    assert page.title() == "Matchmark report"
    assert page.locator("img[src=x]").count() == 0
    assert "</script>" in page.get_by_role("dialog").inner_text()


def test_ten_thousand_numbers(opened, tmp_path):
    results = large(tmp_path)
    start = time.perf_counter()
    page = opened(results)
    page.locator("#deepemd td.number button").first.wait_for()
    took = time.perf_counter() - start
    ready = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    print(f"10,000 numbers: loaded after {ready:.2f} s, written, opened and drawn after {took:.2f} s")
    assert ready < SECONDS
    assert len(heads(page)) == 60
    page.get_by_role("button", name="Show all 2500 rows").click()
    assert len(heads(page)) == 2500


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_accessible(opened, tmp_path, size, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    page = opened(small(tmp_path), size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no scrolling sideways"
    for text in ("Figure", "tables of published numbers"):
        page.locator("summary", has_text=text).first.click()
    page.locator("#deepemd td.number button").nth(3).focus()
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()
    page.keyboard.press("Enter")
    found = axe.run(page)
    assert found.violations_count == 0, found.generate_report()


def test_dark_and_light_by_hand(opened, tmp_path):
    page = opened(small(tmp_path))
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    button = page.get_by_role("button", name="Dark")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
