"""Pictures of every page of the real app with the bundled model: light and dark, desk and phone.

``python tests/browser/screenshots.py FOLDER`` (``make screenshots``). Nothing in them is invented: the chat, the
measurement and the charts are of this machine.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from playwright.sync_api import Browser, Page

from tests.browser.app_process import chromium, running_app, settled

PAGES = (
    "Home",
    "Recipe",
    "Playground",
    "Measure",
    "Quality",
    "Why",
    "Monitor",
    "Decide",
    "Ship",
    "Runs",
    "Handbook",
)
WIDTHS = {"desk": 1280, "phone": 390}
LOAD_MS = 180_000


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as home,
        chromium() as browser,
        running_app(Path(home), folder / "app.log") as (url, _),
    ):
        tour(browser, url, folder)


def tour(browser: Browser, url: str, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(url)
    settled(page)
    shoot(page, folder, "0-home-empty")
    page.get_by_role("button", name="Load the bundled model").click()
    page.wait_for_timeout(3000)
    shoot(page, folder, "1-home-loading", settle=False)
    page.get_by_role("button", name="Chat with it").wait_for(timeout=LOAD_MS)
    use(page)
    for number, name in enumerate(PAGES, start=2):
        visit(page, name)
        shoot(page, folder, f"{number}-{name.lower()}")
    page.close()


def use(page: Page) -> None:
    """Something to show on every page: a conversation and a measurement."""
    visit(page, "Playground")
    say(page, "What is the capital of France?")
    say(page, "Name three rivers of that country.")
    visit(page, "Measure")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_role("link", name="Open this Run").first.wait_for(timeout=LOAD_MS)


def say(page: Page, text: str) -> None:
    box = page.get_by_test_id("stChatInput").locator("textarea")
    box.fill(text)
    box.press("Enter")
    page.get_by_text("ended by itself").or_(page.get_by_text("reached the token limit")).last.wait_for(
        timeout=LOAD_MS
    )
    page.wait_for_timeout(1500)
    settled(page)


def visit(page: Page, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
    settled(page)
    page.wait_for_timeout(2500)


def shoot(page: Page, folder: Path, name: str, *, settle: bool = True) -> None:
    """Full-page pictures in both themes; on a phone the sidebar covers the page, so it is shown without."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for size, width in WIDTHS.items():
            page.set_viewport_size({"width": width, "height": 900})
            page.wait_for_timeout(700)
            if settle:
                settled(page)
            height = page.get_by_test_id("stMainBlockContainer").evaluate("element => element.scrollHeight")
            page.set_viewport_size({"width": width, "height": max(900, min(4000, int(height) + 40))})
            page.wait_for_timeout(500)
            page.screenshot(path=str(folder / f"{name}-{scheme}-{size}.png"))
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots"))
