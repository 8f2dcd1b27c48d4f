"""One app and one browser for the journey; what goes wrong in the console or leaves the machine is collected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.app_process import CHROMIUM, chromium, running_app, settled


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no Chromium: apt-get install chromium"))


@dataclass
class Visit:
    """A page of the app, with its console errors and the hosts it asked."""

    page: Page
    url: str
    problems: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def open(self, path: str = "/") -> Page:
        self.page.goto(self.url + path)
        settled(self.page)
        return self.page

    def go(self, name: str) -> Page:
        """To another page by the sidebar, as a person does; the session lives on."""
        self.page.get_by_test_id("stSidebarNav").get_by_role("link", name=name, exact=True).click()
        settled(self.page)
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ended with the module: while it lives, playwright keeps an event loop running in this thread."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def app(shared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_app(shared_home, tmp_path_factory.mktemp("app") / "log") as (url, _):
        yield url


@pytest.fixture(scope="module")
def visit(app: str, browser: Browser) -> Iterator[Visit]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    visit = Visit(page, app)
    page.on("console", lambda message: message.type == "error" and visit.problems.append(message.text))
    page.on("pageerror", lambda error: visit.problems.append(str(error)))
    page.on("request", lambda request: visit.hosts.add(urlsplit(request.url).hostname or ""))
    yield visit
    page.close()
