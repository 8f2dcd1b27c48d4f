from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from mcp_core import hardware
from mcp_core.monitoring.fake_nvml import FakeDevice, FakeNvml
from mcp_core.monitoring.nvml import read_devices
from mcp_core.serving import supervisor

HERE = Path(__file__).parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> hardware.Hardware:
    """This machine with an H100, here and in the companion process."""
    monkeypatch.setattr(hardware, "read_devices", lambda: read_devices(FakeNvml((FakeDevice(),))))
    monkeypatch.setattr(supervisor, "FOREIGN_COMMAND", (sys.executable, str(HERE / "companion_with_gpu.py")))
    return hardware.detect()


@pytest.fixture
def engine_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter that has both engines, named in the environment."""
    file = tmp_path / "engines" / "python"
    file.parent.mkdir()
    file.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "stand_in_engine.py"}" "$@"\n')
    file.chmod(0o755)
    monkeypatch.setenv("MCP_VLLM_PYTHON", str(file))
    monkeypatch.setenv("MCP_SGLANG_PYTHON", str(file))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return file
