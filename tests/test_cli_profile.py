"""mcp-core profile: over a real worker of a few thousand random weights, and over a fake one at a URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_core import cli
from mcp_core.evaluation.trace_reading import read_summary
from mcp_core.evaluation.trace_store import list_traces
from tests.evaluation.conftest import sleeper, worker_state  # noqa: F401 - fixtures
from tests.evaluation.test_profile_job import RecordedServer
from tests.test_cli_worker import recipe  # noqa: F401 - a fixture

SECRET = "a-secret-of-this-test"


@pytest.mark.slow
def test_a_real_worker_s_trace_is_written_and_explained(recipe: str, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mcp_core.cli", "profile", recipe, "--out", str(out), "--json"]
    command += ["--set", "device=cpu", "--steps", "10", "--warmup", "1", "--output-tokens", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert {"trace", "verdict", "evidence", "run"} <= answer.keys()
    summary = read_summary(Path(answer["trace"]))
    assert (summary.trace_id, summary.run_id) == (answer["trace_id"], answer["run"])
    assert summary.prefill is not None
    assert summary.decode is not None
    assert summary.prefill.steps + summary.decode.steps == 10
    for phase in (summary.prefill, summary.decode):
        assert phase.parts_ms["gemm"] > 0
        assert phase.parts_ms["attention"] > 0
        # What is known of a step, to the last microsecond: operators, and the time outside of any.
        assert sum(phase.parts_ms.values()) + phase.host_gap_ms == pytest.approx(phase.step_ms, rel=0.01)
    assert summary.decode.tokens == 1
    assert summary.prefill.tokens == 64
    names = {section.name for section in summary.sections}
    assert {"prefill", "decode", "queue", "queued", "delivery", "detokenization"} <= names
    assert json.loads((out / "summary.json").read_text())["trace_id"] == summary.trace_id
    (copy,) = (out / "plugins" / "profile" / summary.trace_id).glob("*.pt.trace.json.gz")
    assert read_summary(copy).decode == summary.decode
    home = Path(os.environ["MCP_HOME"])
    assert [path.name for path in (home / "profiles").glob("raw-*")] == []
    assert [kept.id for kept in list_traces()] == [summary.trace_id]


def profile(url: str, tmp_path: Path, *arguments: str) -> int:
    fixed = ["profile", "bundled", "--url", url, "--out", str(tmp_path / "out"), "--concurrency", "2"]
    return cli.main([*fixed, "--prompt-tokens", "8", "--output-tokens", "3", *arguments])


def test_a_running_worker_is_profiled_with_its_token(
    worker_state: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MCP_CONTROL_TOKEN", SECRET)
    with RecordedServer(worker_state, tmp_path, tokens=16 * 32 + 40) as server:
        assert profile(server.url, tmp_path) == 0
    said = capsys.readouterr().out
    assert "prefill  1" in said
    assert str(tmp_path / "out" / "trace.json.gz") in said
    assert len(list((tmp_path / "out").glob("trace*.json.gz"))) == 2


def test_what_cannot_be_profiled_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def complaint(*arguments: str, code: int) -> str:
        assert profile("http://127.0.0.1:9", tmp_path, *arguments) == code
        return capsys.readouterr().err

    monkeypatch.delenv("MCP_CONTROL_TOKEN", raising=False)
    assert "needs the worker's control token" in complaint(code=2)
    monkeypatch.setenv("MCP_CONTROL_TOKEN", SECRET)
    assert "does not answer" in complaint(code=1)
    assert "That is too long: 64 steps" in complaint("--steps", "65", code=2)
    assert "2000 steps in all" in complaint("--repeat", "10", "--wait", "195", code=2)
    assert "load is not valid" in complaint("--concurrency", "5000", code=2)
    started = ("profile", "bundled-llama.cpp", "--out", str(tmp_path / "out"))
    assert cli.main([*started]) == 2  # before anything is loaded
    said = capsys.readouterr().err
    assert "llama.cpp records no trace" in said
    assert "load" not in said
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("a file in the way")
    assert "cannot be made" in complaint(code=2)
    (tmp_path / "out").unlink()
    monkeypatch.setenv("MCP_CONTROL_TOKEN", "short")
    assert "fewer than 16 characters" in complaint(code=2)
