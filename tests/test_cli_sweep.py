"""The sweep verb: what it says before anything starts. The race itself: tests/evaluation/test_sweep.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcp_core import cli
from mcp_core.decision.store import Store
from mcp_core.decision.sweeps import Sweeps

SHAPE = {"layers": 1, "hidden": 32, "intermediate": 64, "heads": 2, "kv_heads": 1, "vocab": 300, "context": 512}
BASE = {
    "model": {"source": "shape", "id": "custom", "shape": SHAPE},
    "dtype": "fp32",
    "device": "cpu",
    "threads": 1,
}
PLAN = {
    "name": "tiny",
    "base": BASE,
    "axes": {"scheme": ["none", "torchao-int4-weight-only"]},
    "workload": {"name": "w"},
}


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    return str(path)


def test_a_dry_run_says_device_time_and_refusals_and_starts_nothing(
    plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", plan, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "sweep tiny: 1 configuration, 1 more refused: about" in err
    assert "of device time" in err
    assert "12 s measuring what the device reaches at most" in err
    assert "works with bf16 only. (torchao-int4-weight-only)" in err
    with Store() as store:
        assert Sweeps(store).list() == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("no-such-plan",), "There are: article, bundled"),
        (("no/such/plan.json",), "No such file"),
        (("{plan}", "--resume"), "no sweep of this plan to resume"),
        (("{plan}", "--out", "/no/such/folder/x"), "no folder"),
    ],
)
def test_wrong_input_exits_2(
    plan: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert cli.main(["sweep", *(each.format(plan=plan) for each in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_the_article_is_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "article", "--dry-run"]) == 0
    assert "sweep article: 10 configurations: about" in capsys.readouterr().err
