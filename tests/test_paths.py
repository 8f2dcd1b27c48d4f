from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mcp_core import paths
from mcp_core.errors import StoreError


def test_home_is_made_on_demand_and_is_its_owners_only(home: Path) -> None:
    folder = paths.home("models", "a")
    assert folder == home / "models" / "a"
    for each in (folder, folder.parent, home):  # the store lies in home itself
        assert stat.S_IMODE(each.stat().st_mode) == 0o700


def test_a_home_that_cannot_be_made_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MCP_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="file") as caught:
        paths.home("logs")
    assert "MCP_HOME" in caught.value.hint


def test_model_roots_are_real_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("MCP_MODEL_ROOTS", os.pathsep.join([str(tmp_path / "link"), str(tmp_path / "other")]))
    prepared = paths.home("models").resolve()
    assert paths.model_roots() == (tmp_path / "real", tmp_path / "other", prepared)
    monkeypatch.delenv("MCP_MODEL_ROOTS")
    assert Path.cwd() in paths.model_roots()


def test_the_store_is_under_home_unless_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.store_url() == f"sqlite:///{home / 'runs.sqlite'}"
    monkeypatch.setenv("MCP_STORE_URL", "sqlite:///elsewhere")
    assert paths.store_url() == "sqlite:///elsewhere"
