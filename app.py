"""The frame: page configuration, navigation and the sidebar. ``streamlit run app.py``."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from mcp_core.errors import McpError
from pages._ui import frame, session, sidebar, workbench

frame.mark()
try:
    workbench.get_workbench()
except McpError as error:
    frame.show_error(error)
    st.stop()
st.set_page_config(  # before st.navigation: else the favicon is fetched from the internet
    page_title="MCP",
    page_icon=str(Path(__file__).parent / "static" / "favicon.png"),
    layout="wide",
)
pages = {
    spec.name: st.Page(frame.path_of(spec.name), title=spec.title, help=spec.help, default=spec.name == "home")
    for spec in frame.PAGES
}
page = st.navigation(list(pages.values()))
if destination := session.take_destination():
    name, query = destination
    st.switch_page(pages[name], query_params=query)
st.set_page_config(page_title=f"{page.title} · MCP, Master Control Program")
sidebar.show()
page.run()
