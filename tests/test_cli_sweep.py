"""The sweep verb: what it says before anything starts. The race itself: tests/evaluation/test_sweep.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mcp_core import cli
from mcp_core.decision.merging import write_runs
from mcp_core.decision.store import Store
from mcp_core.decision.sweeps import Sweeps
from mcp_core.evaluation.new_sweep import begin
from mcp_core.hardware import detect
from mcp_core.sweep_plan import SweepPlan
from tests.evaluation.test_sweep_rows import stored_article

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


def test_the_articles_table_is_shown_again_from_merged_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, merged = stored_article(0, 1), tmp_path / "article.json"
    with Store(f"sqlite:///{tmp_path / 'elsewhere.sqlite'}") as elsewhere:
        elsewhere.add(stored)
        write_runs(elsewhere, [stored.id], merged)
    assert cli.main(["sweep", "article", "--show"]) == 2
    assert "merge the file that its --out wrote" in capsys.readouterr().err
    assert cli.main(["runs", "merge", str(merged)]) == 0
    capsys.readouterr()
    again = tmp_path / "again.json"
    assert cli.main(["sweep", "article", "--show", "--out", str(again)]) == 0
    out = capsys.readouterr().out
    assert "From 1 stored Run of H, 2026-11-26 01:00 to 2026-11-26 01:00 UTC." in out
    assert "llama-2-7b shape" in out
    assert out.count("No Run of it is stored.") == 9
    assert len(again.read_text().splitlines()) == 1
    assert cli.main(["sweep", "article", "--show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == stored.id


@pytest.mark.parametrize(
    ("more", "said"), [([], "Merging brings Runs, not the sweep"), (["--resume"], "--show measures nothing")]
)
def test_without_a_sweep_there_is_nothing_to_show(
    plan: str, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert cli.main(["sweep", plan, "--show", *more]) == 2
    assert said in capsys.readouterr().err


def test_a_sweep_is_shown_again(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked, machine = SweepPlan.from_dict(PLAN), detect()
    with Store() as store:
        begin(store, asked, machine)
    assert cli.main(["sweep", plan, "--show"]) == 1  # nothing was measured
    assert "1 refused or failed: " in capsys.readouterr().out
