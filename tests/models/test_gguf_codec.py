from __future__ import annotations

import sys

import pytest

from mcp_core.models import gguf_codec


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("", ""),
        ("import sys; sys.exit('first\\nlast')", "last"),
        ("import sys; sys.exit(3)", "no reason given"),
        ("import time; time.sleep(60)", "reading it takes longer than 1 s"),
    ],
)
def test_why_a_tokenizer_was_not_converted(code: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_codec, "_TIMEOUT_S", 1)
    assert gguf_codec._why_it_failed([sys.executable, "-I", "-S", "-c", code]) == why
