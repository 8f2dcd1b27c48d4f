"""``mcp-core compare`` and ``recommend`` on planted Runs in a real store."""

from __future__ import annotations

import json
import re

import pytest

from mcp_core import cli
from mcp_core.decision.decision import Decision
from mcp_core.decision.figures import figure
from mcp_core.decision.store import Store
from mcp_core.results import Comparable, Failure
from tests.decision.planted import TRAFFIC, Law, machine, planted_run

FAST = Law(tpot_ms=10, changes={"attention": "eager"})
GOAL = {"users": 8, "slo": {"tpot_ms": {"p95": 15}}, "workload": TRAFFIC.model_dump(mode="json")}


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Three starts of each of two configurations."""
    monkeypatch.setenv("MCP_HOME", str(tmp_path))
    monkeypatch.delenv("MCP_STORE_URL", raising=False)
    pairs = [planted_run(law, 8, start=start, requests=220) for law in (Law(), FAST) for start in range(3)]
    with Store() as store:
        for run, records in pairs:
            store.add(run, records)
    return [run.id for run, _ in pairs]


def test_recommend_answers_with_the_keys_that_others_rely_on(planted, tmp_path, capsys):
    goal, out = tmp_path / "goal.json", tmp_path / "decision.json"
    goal.write_text(json.dumps(GOAL))
    assert cli.main(["recommend", str(goal), "--json", "--out", str(out)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["winner"]["run"] in planted[3:]
    assert document["evidence"] == "measured"
    assert document["runners_up"] == []
    assert document["refused"][0]["run"] in planted[:3]
    assert document["refused"][0]["reason"].startswith("p95 TPOT 2")
    assert Decision.from_json(out.read_text()).winner.figures.goodput_s > 0


def test_recommend_for_people(planted, capsys):
    assert cli.main(["recommend", json.dumps(GOAL)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Measured on transformers, a candidate: ")
    assert "COST/1M" not in out  # there is no price
    assert "> 15 ms" in out


def test_thousands_are_written_out(planted, capsys):
    run, records = planted_run(Law(tpot_ms=4, changes={"batching": {"max_requests": 9}}), 8, requests=220)
    with Store() as store:
        store.add(run, records)
    cli.main(["recommend", json.dumps(GOAL)])
    assert f"  {run.measurement.output_tok_s:,.0f}  " in capsys.readouterr().out
    assert run.measurement.output_tok_s > 1000


def test_recommend_names_the_command_that_measures_a_fidelity_and_its_time(planted, capsys):
    limited = GOAL | {"slo": {}, "fidelity": {"kl_max": 0.01}}
    assert cli.main(["recommend", json.dumps(limited)]) == 1
    out = capsys.readouterr().out
    assert re.search(
        r"To add: fidelity of fp32 · eager, about \d+ s: KL not measured\n  mcp-core fidelity bundled", out
    )
    assert "--set attention=eager" in out


@pytest.mark.parametrize(
    ("goal", "code", "words"),
    [
        ('{"users": 8, "rate_s": 2}', 2, "users and rate_s"),
        ("mlperf-rag", 1, "under chat-like only, not under rag"),
        ("nowhere.json", 2, "nowhere.json cannot be read"),
        ('{"users": 0}', 2, "users"),
        (json.dumps(GOAL | {"slo": {"tpot_ms": {"p50": 0.1}}}), 1, "p50 TPOT alone excludes every configuration"),
    ],
)
def test_recommend_says_why_not(planted, capsys, goal, code, words):
    assert cli.main(["recommend", goal]) == code
    assert words in capsys.readouterr().err


def test_an_empty_store_says_how_to_begin(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MCP_HOME", str(tmp_path))
    assert cli.main(["recommend", "{}", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["winner"] is None
    assert "mcp-core bench" in captured.err


def test_compare_takes_every_repeat_of_both(planted, capsys):
    assert cli.main(["compare", planted[0], planted[3], "--json"]) == 0
    found = {each["quantity"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["tpot_ms"]["verdict"] == "better"
    assert found["tpot_ms"]["pairs"] == 3
    assert found["tpot_ms"]["ratio"]["value"] == pytest.approx(0.5, rel=0.02)
    assert found["peak_bytes"]["verdict"] == "equivalent"
    assert cli.main(["compare", planted[0], planted[3]]) == 0
    said = capsys.readouterr().out
    assert "p50 TPOT" in said
    (memory,) = (line for line in said.splitlines() if line.startswith("peak memory"))
    assert memory.split()[3] in ("MB", "GB")
    assert cli.main(["compare", planted[0], "nonsense"]) == 2


def test_compare_says_what_a_and_b_are_and_which_quantity_is_not_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MCP_HOME", str(tmp_path))
    monkeypatch.delenv("MCP_STORE_URL", raising=False)
    same = Law(changes={"attention": "eager"})
    pairs = [planted_run(law, 8, start=start, requests=60) for law in (Law(), same) for start in range(2)]
    with Store() as store:
        for run, records in pairs:
            store.add(run, records)
    assert cli.main(["compare", pairs[0][0].id, pairs[2][0].id]) == 0
    out, err = capsys.readouterr()
    one, other = out.splitlines()[:2]
    assert one.startswith("A: ")
    assert "eager" not in one
    assert other.startswith("B: ")
    assert "eager" in other
    undecided = [line.split("  ")[0] for line in out.splitlines() if line.endswith("undecided")]
    assert undecided
    told = [line.partition(": the interval")[0] for line in err.splitlines() if "holds both" in line]
    assert sorted(", ".join(told).split(", ")) == sorted(undecided)


def test_the_list_of_runs_tells_configurations_apart(planted, capsys):
    """Engine and scheme alone are the same in both."""
    assert cli.main(["runs"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert [run for run in planted if "eager" in lines[run]] == planted[3:]
    assert cli.main(["runs", "show", planted[3]]) == 0
    assert "eager" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "shown"),
    [(13040.94, "13,041"), (999.97, "1,000"), (999.4, "999.4"), (25.482, "25.48"), (0.4821, "0.4821"), (0, "0")],
)
def test_a_figure_has_no_power_of_ten(value, shown):
    """13040.94 ms was shown as 1.304e+04 ms."""
    assert figure(value) == shown


def test_two_runs_of_one_configuration_show_their_own_figures(planted, capsys):
    """Not the mean of all its repeats in both columns."""
    with Store() as store:
        own = [store.get(run_id).measurement.output_tok_s for run_id in planted[:2]]
    assert cli.main(["compare", *planted[:2], "--json"]) == 0
    found = next(each for each in json.loads(capsys.readouterr().out) if each["quantity"] == "output_tok_s")
    assert [found["a"], found["b"]] == pytest.approx(own)
    assert found["starts"] == [1, 1]
    assert "both are repeats" in found["why"]


def test_compare_leaves_a_sweep_s_probes_and_its_race_out_as_recommend_does(planted, capsys):
    with Store() as store:
        for at, evidence in enumerate(("probed on transformers", "measured on transformers, in a race")):
            run, records = planted_run(Law(tpot_ms=200), 8, start=7 + at, requests=220, evidence=evidence)
            store.add(run.model_copy(update={"recipe": Law().recipe}), records)
    assert cli.main(["compare", planted[0], planted[3], "--json"]) == 0
    (speed, *_) = json.loads(capsys.readouterr().out)
    assert speed["starts"] == [3, 3]
    assert speed["ratio"]["value"] == pytest.approx(2, rel=0.1)


def test_a_run_that_cannot_be_compared_stands_for_itself(planted, capsys):
    """Its figure is its own, also where others of its configuration are void for other reasons."""
    with Store() as store:
        for run_id, speed, reason in (("smoke", 39.9, "smoke test"), ("busy", 25.0, "noisy: others")):
            named = store.get(planted[0])
            measured = named.measurement.model_copy(update={"output_tok_s": speed})
            void = {"id": run_id, "measurement": measured, "comparable": Comparable(ok=False, reasons=(reason,))}
            store.add(named.model_copy(update=void), [])
    assert cli.main(["compare", "smoke", planted[3], "--json"]) == 0
    found = next(each for each in json.loads(capsys.readouterr().out) if each["quantity"] == "output_tok_s")
    assert found["a"] == pytest.approx(39.9)
    assert found["starts"] == [1, 3]
    assert found["why"] == "smoke test"


def test_compare_takes_runs_from_files(planted, tmp_path, capsys):
    """B of a store where A's configuration was never measured; with A's repeats once they are stored."""
    with Store() as store:
        one = store.get(planted[0])
        for run_id in planted[:3]:
            store.delete(run_id)
    file = tmp_path / "run.json"
    file.write_text(one.model_dump_json(indent=2))
    assert cli.main(["compare", str(file), planted[3], "--json"]) == 0
    found = {each["quantity"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["output_tok_s"]["starts"] == [1, 3]
    assert found["tpot_ms"]["a"] == pytest.approx(one.measurement.tpot_ms.p50, rel=1e-4)
    assert found["tpot_ms"]["ratio"]["value"] == pytest.approx(0.5, rel=0.05)
    with Store() as store:
        assert store.get(planted[0]) is None  # it is read, not kept
        store.add(one)
    assert cli.main(["compare", str(file), planted[3], "--json"]) == 0
    again = {each["quantity"]: each for each in json.loads(capsys.readouterr().out)}
    assert again["output_tok_s"] == found["output_tok_s"]  # the same Run counts once


@pytest.mark.parametrize("status", ["failed", "cancelled", "refused", "interrupted"])
def test_a_run_without_figures_cannot_be_compared(planted, capsys, status):
    with Store() as store:
        failure = Failure(kind="oom", message="Memory ran out.", hint="Ask for less.")
        void = {"id": "void", "status": status, "measurement": None, "failure": failure}
        store.add(store.get(planted[0]).model_copy(update=void), [])
    for pair in (["void", planted[3]], [planted[3], "void"]):
        assert cli.main(["compare", *pair, "--json"]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == (
            f"error: Run void has no figures to compare, it is {status}: Memory ran out.\nhint: Ask for less.\n"
        )


def test_compare_names_another_card_of_the_same_kind(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MCP_HOME", str(tmp_path))
    monkeypatch.delenv("MCP_STORE_URL", raising=False)
    pairs = [
        planted_run(law, 8, start=start, requests=60, hardware=machine(card=card))
        for law, card in ((Law(), "a"), (FAST, "b"))
        for start in range(3)
    ]
    with Store() as store:
        for run, records in pairs:
            store.add(run, records)
    ids = [run.id for run, _ in pairs]
    assert cli.main(["compare", ids[0], ids[3]]) == 0
    out, err = capsys.readouterr()
    assert "better" in out
    assert err.count("Another card of the same kind") == 1
