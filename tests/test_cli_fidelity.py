"""``mcp-core fidelity`` and ``bench --fidelity``, job and worker replaced; one job for real, on a tiny model."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest

from mcp_core import cli, hardware
from mcp_core.commands import bench_fidelity
from mcp_core.commands import fidelity as module
from mcp_core.commands.fidelity_table import headline
from mcp_core.decision.store import Store
from mcp_core.errors import Cancelled, OutOfMemory
from mcp_core.evaluation.fidelity_plan import make_plan
from mcp_core.presets import bundled
from mcp_core.recipe import Recipe
from mcp_core.results import Divergence, Fidelity, Mean, Run, StratumFidelity, now
from mcp_core.serving.supervisor import Supervisor
from mcp_core.workload import short_chat

sys.path.insert(0, str(Path(__file__).parent))

MACHINE = hardware.detect()
NF4 = ("--set", "quantization.scheme=bnb-nf4", "--set", "dtype=bf16", "--set", "device=cpu")
TEXT = "It was a quiet evening, and nobody in the village expected anything to happen at all. " * 4


def measured(key="a" * 64):
    mean = {"perplexity": Mean(mean=55.0, se=2.0), "reference_perplexity": Mean(mean=45.0, se=2.0)}
    shares = {"top1": Mean(mean=0.69, se=0.01), "rms_dp": Mean(mean=0.1, se=0.01)}
    kl = Divergence(mean=0.25, mean_se=0.01, median=0.2, p99=None, max=3.0)
    rows = tuple(
        StratumFidelity(name=name, documents=4, tokens=400, kl=kl, **mean, **shares) for name in ("code", "prose")
    )
    return Fidelity(
        status="measured",
        key=key,
        reference="SmolLM2, bf16, unquantized, sdpa",
        text_name="built-in evaluation set",
        documents=8,
        tokens=800,
        kl=kl,
        noise_floor=Mean(mean=0.001),
        kl_over_floor=250.0,
        strata=rows,
        notes=("screening only: 8 documents",),
        **mean,
        **shares,
    )


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def jobs(monkeypatch):
    """Requests of the jobs that were started; each answers with ``measured``."""
    asked = []

    def answer(verb, title, request, **_):
        asked.append((verb, request))
        return {"fidelity": measured().model_dump(mode="json"), "cached": False}

    monkeypatch.setattr(module, "run_job", answer)
    return asked


def test_it_prints_the_headline_and_the_worst_stratum_first(run, jobs):
    code, out, _ = run("fidelity", "bundled", *NF4)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "fidelity: 250 times the noise floor (KL 0.25 ± 0.01, floor 0.001 nats)"
    assert [line.split()[0] for line in lines if line.startswith(("all", "code", "prose"))] == [
        "all",
        "code",
        "prose",
    ]
    assert "too few" in out
    assert "note: screening only: 8 documents" in out
    assert jobs[0][0] == "fidelity"
    assert jobs[0][1]["text_sha256"] is None


def test_json_and_out_carry_the_keys_that_others_rely_on(run, jobs, tmp_path):
    out_file = tmp_path / "f.json"
    code, out, _ = run("fidelity", "bundled", *NF4, "--json", "--out", str(out_file))
    assert code == 0
    document = json.loads(out)
    assert document == json.loads(out_file.read_text())
    assert set(document["kl"]) == {"mean", "mean_se", "median", "p99", "max"}
    assert set(document["top1"]) == set(document["perplexity"]) == {"mean", "se"}
    assert document["tokens"] == 800


def test_how_long_it_takes_is_said_before_and_longer_where_llama_cpp_scores_a_token_a_step(run, jobs):
    pytest.importorskip("xllamacpp")
    told = []
    for recipe in (("bundled", *NF4), ("bundled-llama.cpp",)):
        code, _, err = run("fidelity", *recipe)
        assert code == 0
        (line,) = [each for each in err.splitlines() if each.startswith("it will take about")]
        number, unit = line.removeprefix("it will take about ").split(";")[0].split()
        told.append(float(number) * {"s": 1, "min": 60}[unit])
    assert 60 <= told[0] < told[1] < 3600
    assert [verb for verb, _ in jobs] == ["fidelity", "fidelity"]


def test_what_is_known_is_answered_at_once_and_said(run, jobs):
    recipe = bundled().replace({"quantization.scheme": "bnb-nf4", "dtype": "bf16", "device": "cpu"})
    plan = make_plan(recipe, MACHINE)
    with Store() as store:
        store.add_fidelity(plan.recipe, measured(plan.key))
    code, out, err = run("fidelity", "bundled", *NF4)
    assert (code, jobs) == (0, [])
    assert "known since" in err
    assert "250 times" in out
    run("fidelity", "bundled", *NF4, "--fresh")
    assert jobs[0][1]["fresh"] is True


def test_a_text_is_kept_and_named_by_its_content(run, jobs, tmp_path):
    text = tmp_path / "mine.txt"
    text.write_text(TEXT)
    assert run("fidelity", "bundled", *NF4, "--text", str(text))[0] == 0
    assert len(jobs[0][1]["text_sha256"]) == 64


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "is empty"), (b"short", "at least 200"), ("Käse, ".encode("latin-1") * 60, "not UTF-8")],
)
def test_a_text_that_cannot_be_scored_is_refused(run, jobs, tmp_path, content, said):
    text = tmp_path / "bad.txt"
    text.write_bytes(content)
    code, out, err = run("fidelity", "bundled", *NF4, "--text", str(text))
    assert (code, out, jobs) == (2, "", [])
    assert said in err
    assert "hint: " in err


def test_a_missing_text_or_folder_is_refused(run, jobs, tmp_path):
    assert "No such file" in run("fidelity", "bundled", *NF4, "--text", str(tmp_path / "none.txt"))[2]
    assert "no folder" in run("fidelity", "bundled", *NF4, "--out", "/no/such/folder/f.json")[2]
    assert jobs == []


def test_words_for_what_was_not_measured():
    told = Fidelity(status="not-measurable", reason="random weights say nothing.")
    assert headline(told) == "fidelity: not-measurable: random weights say nothing."
    assert "times" not in headline(measured().model_copy(update={"kl_over_floor": None}))


# bench --fidelity


def bench_run(recipe, status="ok", run_id="r1"):
    return Run(id=run_id, created=now(), recipe=recipe, workload=short_chat(), hardware=MACHINE, status=status)


QUANTIZED = bundled().replace({"quantization.scheme": "bnb-nf4", "device": "cpu"})


def test_the_run_carries_the_fidelity_of_its_own_recipe(monkeypatch):
    asked = []
    monkeypatch.setattr(
        bench_fidelity, "measure_fidelity", lambda recipe, *_, **__: asked.append(recipe) or measured()
    )
    run = bench_fidelity.with_fidelity(bench_run(QUANTIZED), MACHINE, as_json=False)
    assert (run.fidelity, asked) == (measured(), [QUANTIZED])


def test_speed_that_was_measured_outlives_a_failed_judgement(monkeypatch, capsys):
    def fail(*_, **__):
        raise OutOfMemory("Memory ran out while quantizing the candidate.")

    monkeypatch.setattr(bench_fidelity, "measure_fidelity", fail)
    run = bench_fidelity.with_fidelity(bench_run(QUANTIZED), MACHINE, as_json=False)
    assert (run.status, run.fidelity.status) == ("ok", "not-measurable")
    assert "quantizing the candidate" in run.fidelity.reason
    assert "quantizing the candidate" in capsys.readouterr().err


def test_a_judgement_that_is_stopped_leaves_it_unmeasured(monkeypatch):
    def stop(*_, **__):
        raise Cancelled("fidelity was stopped.")

    monkeypatch.setattr(bench_fidelity, "measure_fidelity", stop)
    assert bench_fidelity.with_fidelity(bench_run(QUANTIZED), MACHINE, as_json=False).fidelity is None


def test_a_baseline_is_missing_until_there_is_a_good_run_of_it():
    plain = QUANTIZED.replace({"quantization.scheme": "none"})
    with Store() as store:
        assert bench_fidelity.missing_baseline(bench_run(plain), store) is None
        for run_id, recipe, status in (("r2", plain, "failed"), ("r3", plain.replace({"dtype": "fp16"}), "ok")):
            store.add(bench_run(recipe, status, run_id))
        missing = bench_fidelity.missing_baseline(bench_run(QUANTIZED), store)
        assert missing.load_key == plain.load_key
        store.add(bench_run(plain, "ok", "r4"))
        assert bench_fidelity.missing_baseline(bench_run(QUANTIZED), store) is None


def test_bench_stores_the_fidelity_with_the_run_and_a_baseline_beside_it(run, jobs, monkeypatch):
    command = (sys.executable, str(Path(__file__).parent / "evaluation" / "fake_worker.py"))
    monkeypatch.setattr("mcp_core.commands.bench.Supervisor", functools.partial(Supervisor, command))
    workload = ("--set", "workload.requests=2", "--set", "workload.warmup_requests=0")
    scheme = ("--set", "quantization.scheme=torchao-int8-weight-only", "--set", "device=cpu")
    code, out, err = run("bench", "bundled", "short-chat", *workload, *scheme, "--fidelity", "--json")
    assert code == 0, err
    assert json.loads(out)["fidelity"]["kl_over_floor"] == 250.0
    assert len(jobs) == 1
    with Store() as store:
        baseline, judged = store.list()
    assert (baseline.recipe.quantization.scheme, baseline.fidelity) == ("none", None)
    assert judged.fidelity == measured()
    assert "it is measured now" in err
    assert "it is measured now" not in run("bench", "bundled", "short-chat", *workload, *scheme, "--fidelity")[2]


def test_bench_judges_a_checkpoint_against_its_original(run, jobs, monkeypatch):
    command = (sys.executable, str(Path(__file__).parent / "evaluation" / "fake_worker.py"))
    monkeypatch.setattr("mcp_core.commands.bench.Supervisor", functools.partial(Supervisor, command))
    workload = ("--set", "workload.requests=1", "--set", "workload.warmup_requests=0", "--set", "device=cpu")
    code, _, err = run("bench", "bundled", "short-chat", *workload, "--fidelity", "--original", "bundled")
    assert code == 0, err
    assert jobs[0][1]["original"]["source"] == "bundled"
    code, _, err = run("bench", "bundled", "short-chat", *workload, "--original", "bundled")
    assert code == 2
    assert "--original goes with --fidelity only" in err


def test_bench_url_knows_no_recipe_to_judge(run):
    code, _, err = run("bench", "bundled", "short-chat", "--url", "http://127.0.0.1:1", "--fidelity")
    assert code == 2
    assert "mcp-core fidelity RECIPE --url" in err


# For real


def test_a_job_measures_and_the_second_call_is_known(run, tmp_path):
    from tiny_llama import build_tiny_llama

    build_tiny_llama(tmp_path / "tiny")
    model = {"source": "folder", "id": str(tmp_path / "tiny")}
    recipe = Recipe.from_dict({"model": model, "device": "cpu", "dtype": "bf16", "threads": 1})
    document, text = tmp_path / "recipe.json", tmp_path / "mine.txt"
    document.write_text(recipe.to_json())
    text.write_text(TEXT)
    code, out, err = run("fidelity", str(document), "--text", str(text), "--json")
    assert code == 0, err
    first = json.loads(out)
    assert first["kl"]["mean"] > 0  # bf16 against the checkpoint's fp32
    with Store() as store:
        (stored,) = store.fidelities()
        assert stored.fidelity.key == first["key"]
        assert store.token_map(first["key"]).documents[0].tokens[0].text == "I"
    code, out, err = run("fidelity", str(document), "--text", str(text), "--json")
    assert (code, json.loads(out)) == (0, first)
    assert "known since" in err


def test_an_original_belongs_to_what_is_loaded_here(run):
    code, _, err = run("fidelity", "bundled", "--original", "bundled", "--url", "http://127.0.0.1:1")
    assert code == 2
    assert "--original goes without --url" in err
