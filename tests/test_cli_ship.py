"""export, confirm and what they refuse, from the command line; a server that MCP starts ends with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mcp_core.cli import main
from mcp_core.decision.decision import Decision
from mcp_core.decision.store import Store
from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw
from tests.decision.planted import Law, planted_run
from tests.decision.test_confirmation import decision


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Id of a stored Run whose throughput any server reaches."""
    monkeypatch.setenv("MCP_HOME", str(tmp_path / "home"))
    run, records = planted_run(Law(), 4)
    assert run.measurement is not None
    slow = run.measurement.model_copy(update={"output_tok_s": 5.0})
    small = {"requests": 8, "prompt_tokens": {"min": 8, "max": 8}, "output_tokens": {"min": 4, "max": 4}}
    recipe = run.recipe.replace({"device": "cpu", "kv.max_context": 256})
    run = run.model_copy(update={"measurement": slow, "recipe": recipe, "workload": run.workload.replace(small)})
    with Store() as store:
        store.add(run, records)
    return run.id


def test_a_run_is_exported_confirmed_by_url_and_its_papers_say_so(
    stored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", stored, "--target", "worker", "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document["files"]) == {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert document["verify"] == f"mcp-core confirm {out}"
    with FakeServer(LatencyLaw(ttft_ms=3, tpot_ms=1)) as server:
        assert main(["confirm", str(out), "--url", server.url, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["holds"] is True
    assert "Confirmed on transformers: a recommendation." in (out / "README.md").read_text()
    assert json.loads((out / "run.json").read_text())["evidence"] == "confirmed on transformers"
    with Store() as store:
        found = store.get(stored)
        assert found is not None
        assert found.evidence == "confirmed on transformers"


def test_what_is_not_confirmed_exits_with_1_and_the_reason(
    stored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "decision.json", tmp_path / "out"
    made = decision()
    assert made.winner is not None
    winner = made.winner.model_copy(update={"recipe": made.winner.recipe.replace({"kv.max_context": 256})})
    small = {"requests": 6, "prompt_tokens": {"min": 8, "max": 8}, "output_tokens": {"min": 4, "max": 4}}
    winner = winner.model_copy(update={"workload": winner.workload.replace(small)})
    file.write_text(made.model_copy(update={"winner": winner}).to_json())
    assert main(["export", str(file), "--target", "worker", "--out", str(out)]) == 0
    with FakeServer(LatencyLaw(ttft_ms=20, tpot_ms=30)) as server:
        assert main(["confirm", str(out), "--url", server.url]) == 1
    said = capsys.readouterr()
    assert "Not confirmed: " in said.err
    assert "p50 TTFT" in said.out
    assert "Not confirmed" not in said.out  # once is enough
    assert not Decision.from_json((out / "decision.json").read_text()).is_recommendation


def test_refusals_write_nothing(stored: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", stored, "--target", "vllm", "--out", str(out)]) == 2
    assert main(["export", stored, "--target", "nowhere", "--out", str(out)]) == 2
    assert main(["export", "none", "--target", "worker", "--out", str(out)]) == 2
    assert main(["confirm", str(tmp_path)]) == 2
    assert not out.exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_bundle_without_sound_papers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bundle.json").write_text('{"target": "worker"}')
    assert main(["confirm", str(tmp_path)]) == 2
    assert "neither run.json nor decision.json" in capsys.readouterr().err
    for name, said in (
        ("run.json", "neither a Run nor a Decision"),
        ("decision.json", "no object|not valid|neither"),
    ):
        (tmp_path / name).write_text('{"goal": 3}' if name == "decision.json" else '{"id": 3}')
        assert main(["confirm", str(tmp_path), "--url", "http://127.0.0.1:9"]) == 2
        assert re.search(said, capsys.readouterr().err)


@pytest.mark.parametrize("apart", [False, True], ids=["in its group", "in a session of its own"])
def test_a_started_server_ends_with_whoever_started_it(tmp_path: Path, apart: bool) -> None:
    """Its own child too, which would keep a device's memory."""
    sleep = "import time; time.sleep(60)"
    child = f"[sys.executable, '-c', {sleep!r}], start_new_session={apart}"
    script = f"import subprocess, sys; subprocess.Popen({child}); {sleep}"
    order = {"command": [sys.executable, "-c", script], "environment": {}, "folder": str(tmp_path)}
    reading, writing = os.pipe()
    shim = subprocess.Popen(
        [sys.executable, "-m", "mcp_core.serving.kept_server"], stdin=reading, start_new_session=True
    )
    os.close(reading)
    os.write(writing, json.dumps(order).encode() + b"\n")
    family: list[psutil.Process] = []
    until = time.monotonic() + 20
    while len(family) < 2 and time.monotonic() < until:
        family = psutil.Process(shim.pid).children(recursive=True)
        time.sleep(0.05)
    assert len(family) == 2
    os.close(writing)  # what the kernel does too when whoever holds the other end is killed
    shim.wait(20)
    assert not psutil.wait_procs(family, timeout=5)[1]
