"""The frame: page configuration, navigation and the sidebar. ``streamlit run app.py``."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from mcp_core.errors import McpError
from pages._ui import frame, session, sidebar, workbench

STATIC = Path(__file__).parent / "static"
SIDEBAR_PX = 264  # so that the table of Runs fits beside it on a laptop

frame.mark()
st.set_page_config(  # before st.navigation: else the favicon is fetched from the internet
    page_title="MCP",
    page_icon=str(STATIC / "favicon.png"),
    layout="wide",
    initial_sidebar_state=SIDEBAR_PX,
)
frame.style()
pages = {
    spec.name: st.Page(frame.path_of(spec.name), title=spec.title, help=spec.help, default=spec.name == "home")
    for spec in frame.PAGES
}
try:
    workbench.get_workbench()
except McpError as error:
    st.navigation(list(pages.values()), position="hidden")  # else Streamlit lists the files of pages/
    frame.show_cannot_start(error)
    st.stop()
page = st.navigation(list(pages.values()))
if destination := session.take_destination():
    name, query = destination
    st.switch_page(pages[name], query_params=query)
st.set_page_config(page_title=f"{page.title} · MCP, Master Control Program")
st.logo(str(STATIC / "logo.svg"), size="large")
sidebar.show()
page.run()
