"""Every test has a home of its own and no network."""

from __future__ import annotations

from pathlib import Path

import pytest

# Times, rates and loads of this machine.
_ALONE = {
    "test_benchmark.py",
    "test_capacity.py",
    "test_ceilings_job.py",
    "test_cores.py",
    "test_history.py",
    "test_loadgen.py",
    "test_run_recorder.py",
    "test_vanishing_clients.py",
    "test_why_real.py",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in _ALONE:
            item.add_marker(pytest.mark.alone)


@pytest.fixture(scope="session", autouse=True)
def _offline() -> None:
    import os

    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for the whole session: the bundled model is prepared in it once."""
    return tmp_path_factory.mktemp("shared-home")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh MCP_HOME for each test; local models may lie anywhere under the test's folder."""
    folder = tmp_path / "mcp-home"
    monkeypatch.setenv("MCP_HOME", str(folder))
    monkeypatch.setenv("MCP_MODEL_ROOTS", str(tmp_path))
    monkeypatch.delenv("MCP_STORE_URL", raising=False)
    return folder
