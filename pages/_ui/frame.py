"""The frame around every page: which pages there are, the guard for deep links, links, and how an error looks.

This file does not know what a page shows.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import streamlit as st
from streamlit.errors import StreamlitAPIException

from mcp_core.errors import McpError
from mcp_core.results import Failure
from pages._ui import session

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class PageSpec:
    """One entry of the navigation; ``name`` is its file in pages/ and its URL."""

    name: str
    title: str
    help: str


PAGES: tuple[PageSpec, ...] = (
    PageSpec("home", "Home", "What is loaded, and what to do next."),
    PageSpec("recipe", "Recipe", "Choose a model and how it is served."),
    PageSpec("playground", "Playground", "Chat with the loaded model."),
    PageSpec("measure", "Measure", "Run a workload and store the result."),
    PageSpec("quality", "Quality", "How much a Recipe changes what the model says."),
    PageSpec("why", "Why", "Why a Run is as slow as it is, and what would help."),
    PageSpec("monitor", "Monitor", "Live memory, load and speed."),
    PageSpec("decide", "Decide", "One configuration for what you need, and why not the others."),
    PageSpec("ship", "Ship", "Files that deploy a configuration, and a check of the deployment."),
    PageSpec("runs", "Runs", "Every measurement so far."),
    PageSpec("handbook", "Handbook", "The article's advice, tried on this machine."),
)

# What the theme cannot say. Streamlit writes the chosen segment and tab in primaryColor, which white button labels
# need dark: on the dark background that is 3.4:1, so those words get a lighter blue there. Its colours of code are
# 2.6:1 to 3.7:1 on the light background: these are 4.5:1 and more on both.
_STYLE = """<style>
.stMainBlockContainer { padding-left: 3rem; padding-right: 3rem; }
@media (max-width: 1400px) { .stMainBlockContainer { padding-left: 2rem; padding-right: 2rem; } }
@media (max-width: 768px) { .stMainBlockContainer { padding-left: 1rem; padding-right: 1rem; } }
[data-variant="segmented_control"][data-selected="true"], [data-variant="pills"][data-selected="true"],
.stTabs [role="tab"][aria-selected="true"] { color: light-dark(#1d5fa8, #8ab8f7) !important; }
.stCode .token:is(.comment, .prolog, .doctype, .punctuation) { color: light-dark(#5c6270, #a0a6b4); }
.stCode .token:is(.attr-name, .property, .variable, .parameter) { color: light-dark(#0a6788, #3ac1e8); }
.stCode .token:is(.boolean, .constant, .symbol) { color: light-dark(#0b6b2c, #3dd56d); }
.stCode .token:is(.string, .char, .attr-value) { color: light-dark(#0b6b2c, #3dd56d); }
.stCode .token:is(.number, .regex) { color: light-dark(#0b665a, #4ad0bd); }
.stCode .token:is(.operator, .entity, .decorator, .atrule) { color: light-dark(#9a4605, #ffa051); }
.stCode .token:is(.keyword, .tag, .function, .class-name, .selector) { color: light-dark(#14599f, #66adf4); }
.stCode .token.important { color: light-dark(#b3261e, #ff7a7a); }
</style>"""

# A server that has imported pandas, SQLAlchemy and plotly holds very many objects for good. Looking among them for
# garbage after every 700 new ones was a fifth of what the first visitor waited for; so it is looked for less often.
gc.set_threshold(20_000, 10, 10)

_framed = False  # whether app.py has run in this server process


def mark() -> None:
    """First line of app.py."""
    global _framed  # noqa: PLW0603 - the one fact per process that the guard needs
    _framed = True


def require(name: str) -> None:
    """First line of every page: a deep link on a cold server reaches the page without app.py, so go there first.

    A page that runs alone (AppTest) has no app.py to go to and is simply drawn.
    """
    if _framed:
        return
    session.leave_for(name, st.query_params.to_dict())
    try:
        st.switch_page("app.py")
    except StreamlitAPIException:
        session.take_destination()


def style() -> None:
    """The few rules that ``.streamlit/config.toml`` has no option for; once a run, by app.py."""
    st.html(_STYLE)


def show_cannot_start(error: McpError) -> None:
    """The whole page when there is no Workbench: the cause, what to do, and a way to try once it is done."""
    st.title("MCP cannot start")
    show_error(error)
    st.button("Try again", type="primary", icon=":material/refresh:")


def path_of(name: str) -> str:
    """The page's file."""
    return str(ROOT / "pages" / f"{name}.py")


def go_to(name: str, **query: str) -> None:
    """Leave for another page; a page that runs alone stays."""
    try:
        st.switch_page(path_of(name), query_params=query)
    except StreamlitAPIException:
        st.info(f"Next: the {_spec(name).title} page.")


def link(name: str, label: str, *, icon: str | None = None, help: str | None = None, **query: str) -> None:  # noqa: A002
    """A link to another page; only its words in a page that runs alone."""
    try:
        st.page_link(path_of(name), label=label, icon=icon, help=help, query_params=query or None)
    except (StreamlitAPIException, KeyError):
        st.markdown(label)


def address(name: str, **query: str) -> str:
    """A page's relative address, as a cell of a table links to it."""
    return f"{name}?{urlencode(query)}"


def show_error(error: McpError | Failure) -> None:
    """The cause, and under it what to do."""
    hint = f"\n\n{plain(error.hint)}" if error.hint else ""
    st.error(plain(error.message) + hint, icon=":material/error:")


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show an McpError raised inside instead of passing it on."""
    try:
        yield
    except McpError as error:
        show_error(error)


def _spec(name: str) -> PageSpec:
    return next(page for page in PAGES if page.name == name)


def plain(text: str) -> str:
    """The text with every character escaped that Markdown would read."""
    return "".join(f"\\{char}" if char in r"\`*_[]#$<>~|:" else char for char in text)
