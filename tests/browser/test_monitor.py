"""Monitor in a real browser: pause, zoom, range, download, events, two ranges beside each other."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from playwright.sync_api import Page, expect

LOAD_MS = 180_000


def test_the_range_is_in_the_link(visit):
    page = visit.open("/monitor?range=1+min")
    expect(page.get_by_role("radio", name="1 min", exact=True).first).to_be_checked()
    page.get_by_role("radio", name="15 min", exact=True).first.click()
    page.wait_for_url(re.compile(r"range=15(\+|%20)min"))
    expect(page.locator("canvas").first).to_be_visible(timeout=20_000)


def test_a_load_is_an_event_of_the_time_axis(visit):
    page = visit.go("Home")
    page.get_by_role("button", name="Load the bundled model").click()
    expect(page.get_by_role("button", name="Chat with it")).to_be_visible(timeout=LOAD_MS)
    main = visit.go("Monitor").get_by_test_id("stMain")
    expect(main).to_contain_text("What happened", timeout=20_000)
    expect(main).to_contain_text(re.compile(r"ready.*SmolLM2", re.DOTALL))


def test_pause_holds_the_charts_and_lets_zoom(visit):
    page = visit.page
    page.wait_for_timeout(4000)  # a few samples, so that a range has two ends
    page.get_by_text("Pause", exact=True).click()
    zoom = page.get_by_test_id("stSlider").first
    expect(zoom).to_be_visible(timeout=20_000)
    before = answer(page)
    page.wait_for_timeout(3000)
    assert answer(page) == before
    ends = zoom.get_by_role("slider")
    whole = ends.first.get_attribute("aria-valuenow")
    ends.first.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expect(ends.first).not_to_have_attribute("aria-valuenow", whole or "")
    page.get_by_text("Pause", exact=True).click()
    expect(zoom).not_to_be_visible(timeout=20_000)


def answer(page: Page) -> str:
    """The sentence above the charts, which changes with every sample."""
    return page.get_by_test_id("stMain").get_by_text(re.compile("memory .* of")).first.inner_text()


def test_the_range_is_downloaded_as_csv_with_units(visit):
    with visit.page.expect_download() as waiting:
        visit.page.get_by_role("button", name="Download CSV").click()
    rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text())))
    assert waiting.value.suggested_filename.startswith("mcp-telemetry-")
    assert len(rows) >= 3
    columns = set(rows[0])
    assert any("percent" in name for name in columns), columns
    assert any("bytes" in name for name in columns), columns


def test_two_ranges_stand_beside_each_other(visit):
    page = visit.page
    page.get_by_text("Compare two time ranges").click()
    main = page.get_by_test_id("stMain")
    expect(main).to_contain_text("what B is of A")
    expect(main.get_by_text(re.compile(r"^A: .* B: "))).to_be_visible(timeout=20_000)
    expect(main.get_by_role("cell", name="CPU", exact=True).or_(main.get_by_text("CPU (%)")).first).to_be_visible()


def test_the_console_is_clean(visit):
    known = ("_stcore/health", "_stcore/host-config", "404")
    assert [problem for problem in visit.problems if not any(word in problem for word in known)] == []
