"""The Hugging Face token of this visit: typed here, else from Streamlit's secrets, else from the environment.

This file does not know what the token opens.
"""

from __future__ import annotations

import os

import streamlit as st
from streamlit.errors import StreamlitSecretNotFoundError

from pages._ui import session

__all__ = ["current_token", "token_field"]


def current_token() -> str | None:
    """The token to use now, None without one."""
    return session.hub_token() or _configured()[0]


def token_field() -> None:
    """A password field for this visit, and a word about which token is in use."""
    _, origin = _configured()
    typed = st.text_input(
        "Token for gated or private models",
        value=session.hub_token() or "",
        type="password",
        placeholder=f"using {origin}" if origin else "hf_…",
        autocomplete="off",
        help="Used for this visit, never stored.",
    )
    session.set_hub_token((typed or "").strip() or None)
    if session.hub_token():
        st.caption("Using the token typed here, for this visit only. It is never stored.")
    elif origin:
        st.caption(f"Using the token from {origin}.")


def _configured() -> tuple[str | None, str | None]:
    """The token that was set up outside the page, and where."""
    try:
        secret = st.secrets.get("HF_TOKEN")
    except StreamlitSecretNotFoundError:
        secret = None
    if secret:
        return str(secret), "Streamlit secrets"
    variable = os.environ.get("HF_TOKEN")
    return (variable, "the environment (HF_TOKEN)") if variable else (None, None)
