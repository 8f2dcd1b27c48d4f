"""What the product is for, done as a person does it: load → chat → monitor → measure → find the Run again.

One browser session and one worker for all steps; the tests run in order and each leaves the next its state.
"""

from __future__ import annotations

import re

from playwright.sync_api import expect

LOAD_S = 180_000


def test_a_deep_link_to_a_page_right_after_the_server_started(visit):
    """First in this file on purpose: the server is cold, no session has run app.py."""
    page = visit.open("/runs?run=nothing-of-that-name")
    expect(page.get_by_test_id("stSidebarNav").get_by_role("link", name="Monitor", exact=True)).to_be_visible()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Runs")


def test_the_chosen_segment_reads_well_in_the_dark(visit):
    """frame.style's lighter blue: Streamlit's own is 3.4:1 on the dark background."""
    visit.page.emulate_media(color_scheme="dark")
    page = visit.open("/recipe")
    expect(page.get_by_role("radio", name="Bundled").first).to_have_css("color", "rgb(138, 184, 247)")
    visit.page.emulate_media(color_scheme="light")


def test_load_the_bundled_model_with_one_click(visit):
    page = visit.open("/")
    page.get_by_role("button", name="Load the bundled model").click()
    expect(page.get_by_role("button", name="Chat with it")).to_be_visible(timeout=LOAD_S)
    expect(page.get_by_test_id("stSidebar")).to_contain_text("ready")


def test_chat_streams_a_true_answer_with_its_speed(visit):
    page = visit.go("Playground")
    box = page.get_by_test_id("stChatInput").locator("textarea")
    box.fill("What is the capital of France?")
    box.press("Enter")
    reply = page.get_by_test_id("stChatMessage").nth(1)
    expect(reply).to_contain_text("Paris", timeout=60_000)
    expect(reply).to_contain_text(re.compile(r"TTFT [\d.,]+ m?s · TPOT [\d.,]+ m?s"), timeout=60_000)


def test_a_reply_can_be_stopped_midway_and_a_reload_keeps_it(visit):
    page = visit.page
    box = page.get_by_test_id("stChatInput").locator("textarea")
    box.fill("Write a very long story about a lighthouse.")
    box.press("Enter")
    reply = page.get_by_test_id("stChatMessage").nth(3)
    expect(reply).to_contain_text(re.compile(r"\w+ \w+ \w+"), timeout=60_000)
    page.get_by_role("button", name="Stop").first.click()
    expect(reply).to_contain_text("stopped by you", timeout=20_000)
    page.reload()
    expect(page.get_by_test_id("stChatMessage").nth(3)).to_contain_text("stopped by you", timeout=30_000)


def test_monitor_shows_this_machine_live(visit):
    page = visit.go("Monitor")
    expect(page.get_by_test_id("stMain")).to_contain_text(re.compile("no NVIDIA|NVIDIA", re.IGNORECASE))
    expect(page.locator("canvas").first).to_be_visible(timeout=20_000)
    expect(page.get_by_test_id("stMain")).to_contain_text(re.compile(r"[\d.]+ ?%"))


def test_measure_gives_a_run_with_percentiles(visit):
    page = visit.go("Measure")
    page.get_by_role("button", name="Start", exact=True).click()
    main = page.get_by_test_id("stMain")
    expect(main).to_contain_text(re.compile("too few requests", re.IGNORECASE), timeout=LOAD_S)
    expect(main).to_contain_text("TTFT")
    expect(main).to_contain_text(re.compile(r"[\d.]+ tok/s"))


def test_the_run_is_on_the_runs_page(visit):
    page = visit.go("Runs")
    expect(page.get_by_test_id("stMain")).to_contain_text("short-chat")


def test_unload_gives_the_memory_back(visit):
    page = visit.go("Home")  # the one who chatted is not asked about the own conversation
    page.get_by_test_id("stSidebar").get_by_role("button", name="Unload").click()
    expect(page.get_by_role("button", name="Load the bundled model")).to_be_visible(timeout=30_000)


def test_nothing_was_asked_of_the_network_and_the_console_is_clean(visit):
    assert visit.hosts - {"", "127.0.0.1"} == set()
    # Streamlit asks for these below the page's own path first and falls back; it logs a 404 each.
    known = ("_stcore/health", "_stcore/host-config", "404")
    assert [problem for problem in visit.problems if not any(word in problem for word in known)] == []
