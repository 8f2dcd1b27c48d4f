"""The command line: quick verbs in this process, serve and bench over a fake worker."""

from __future__ import annotations

import errno
import functools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mcp_core import cli, devices
from mcp_core.commands import output
from mcp_core.commands.output import ProgressReport, size
from mcp_core.decision.store import Store
from mcp_core.errors import StoreError
from mcp_core.goal_presets import GOALS
from mcp_core.presets import RECIPES, bundled
from mcp_core.recipe import Recipe
from mcp_core.results import Run
from mcp_core.serving.supervisor import Supervisor
from mcp_core.views import Progress
from mcp_core.workload import WORKLOADS, Lengths, Workload
from tests.decision.planted import Law, planted_run

FAKE_WORKER = Path(__file__).parent / "evaluation" / "fake_worker.py"
TINY = {
    "model": {
        "source": "shape",
        "id": "custom",
        "shape": {
            "layers": 1,
            "hidden": 32,
            "intermediate": 64,
            "heads": 2,
            "kv_heads": 1,
            "vocab": 300,
            "context": 512,
        },
    },
    "dtype": "fp32",
    "threads": 1,
}
QUICK = {
    "name": "quick",
    "requests": 4,
    "prompt_tokens": {"min": 4, "max": 8},
    "output_tokens": {"min": 3, "max": 5},
    "warmup_requests": 1,
}


@pytest.fixture
def cli_run(capsys):
    """Run the command line: (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def answer(cli_run):
    """The JSON document that a verb answers with."""

    def run(*arguments: str):
        code, out, err = cli_run(*arguments)
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(TINY))
    return str(path)


@pytest.fixture
def quick(tmp_path):
    path = tmp_path / "quick.json"
    path.write_text(json.dumps(QUICK))
    return str(path)


def is_two_lines(err: str) -> bool:
    lines = err.splitlines()
    return len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")


# The table and its errors


def test_the_help_names_every_verb_and_the_first_steps(cli_run):
    code, out, err = cli_run("--help")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert set(cli.VERBS) <= {words[0] for words in lines if len(words) > 1}  # what it does stands beside it
    begin = out.partition("begin with:")[2]
    assert ["mcp-core", "bench", "bundled", "short-chat"] in [line.split() for line in begin.splitlines()]


def test_every_verb_has_help(cli_run):
    for verb in cli.VERBS:
        code, out, err = cli_run(verb, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"usage: mcp-core {verb}")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such-verb",),
        ("preset", "--no-such-option"),
        ("serve", "bundled", "--port", "70000"),
        ("serve", "bundled", "--port", "x"),
        ("serve", "bundled", "--host", "0.0.0.0"),
        ("bench", "bundled"),
        ("runs", "--limit", "0"),
        ("runs", "--limit", "many"),
        ("runs", "show"),
        ("runs", "no-such-action"),
        ("why", "a", "left over"),
        ("bench", "bundled", "chat", "--progress", "xml"),
    ],
)
def test_wrong_arguments_exit_2(cli_run, arguments):
    code, out, err = cli_run(*arguments)
    assert (code, out) == (2, "")
    assert is_two_lines(err)
    assert re.search(r"hint: mcp-core (\w+ )*--help", err)
    assert " _" not in err  # no function of ours is named


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("footprint", "no-such-preset"), 'no Recipe preset "no-such-preset"'),
        (("footprint", "no/such/file.json"), "No such file"),
        (("footprint", "bundled", "--set", "dtype"), 'no "="'),
        (("footprint", "bundled", "--set", "no.such.field=1"), 'no field "no.such.field"'),
        (("footprint", "bundled", "--set", "dtype=fp64"), "dtype: "),
        (("footprint", "bundled", "--set", "workload.seed=1"), "takes no Workload"),
        (("bench", "bundled", "short-chat", "--set", "workload.requests=0"), "requests: "),
        (("bench", "bundled", "no-such-workload"), "no-such-workload"),
        (("bench", "bundled", "short-chat", "--set", "device=cuda:9"), "no cuda:9"),
        (("bench", "bundled", "short-chat", "--url", "nonsense"), "nonsense"),
        (("bench", "bundled", "short-chat", "--out", "/no/such/folder/x.json"), "no folder"),
        (("preset", "no-such-preset"), "no-such-preset"),
        (("runs", "show", "no-such-run"), "no-such-run"),
        (("runs", "delete", "no-such-run"), "no-such-run"),
        (("runs", "tag", "no-such-run", "best"), "no-such-run"),
        (("models", "delete", "no-such-model"), "no-such-model"),
    ],
)
def test_wrong_input_exits_2_with_cause_and_hint(cli_run, arguments, said):
    code, out, err = cli_run(*arguments)
    assert (code, out) == (2, "")
    assert is_two_lines(err), err
    assert said in err


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"dtype": "fp64"}', "dtype"),
        ('{"kv": {"kin": "static"}}', "kv.kin"),
        ("{", "JSON"),
        ("[]", "object"),
        ("", "JSON"),
        ("\xff", "JSON"),
    ],
)
def test_a_malformed_recipe_names_its_field(cli_run, tmp_path, text, field):
    path = tmp_path / "recipe.json"
    path.write_bytes(text.encode("latin-1"))
    code, _, err = cli_run("footprint", str(path))
    assert code == 2
    assert field in err
    assert is_two_lines(err)


def test_a_broken_store_exits_1_with_cause_and_hint(cli_run, home):
    home.mkdir()
    (home / "runs.sqlite").write_bytes(b"no database" * 1000)
    code, out, err = cli_run("runs")
    assert (code, out) == (1, "")
    assert is_two_lines(err)


def test_a_home_that_cannot_be_used_exits_1_with_cause_and_hint(cli_run, home):
    home.write_text("a file where the folder should be")
    code, out, err = cli_run("models")
    assert (code, out) == (1, "")
    assert is_two_lines(err)
    assert str(home) in err
    assert "MCP_HOME" in err


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (999, "999 B"), (135_000, "135 kB"), (13.48e9, "13.48 GB")]
)
def test_sizes_are_in_decimal_units(count, text):
    assert size(count) == text


# Verbs that answer at once


def test_presets_print_documents_that_can_be_read_back(answer):
    listed = answer("preset", "--json")
    assert set(listed["recipes"]) == set(RECIPES)
    assert set(listed["workloads"]) == set(WORKLOADS)
    for name in RECIPES:
        assert Recipe.from_dict(answer("preset", name)) == RECIPES[name]()
    for name in WORKLOADS:
        assert Workload.from_dict(answer("preset", name)) == WORKLOADS[name]()


def test_presets_are_listed_for_people(cli_run):
    code, out, _ = cli_run("preset")
    assert code == 0
    assert all(name in out for name in (*RECIPES, *WORKLOADS))
    table = out.split("\n\nPrint one")[0].splitlines()
    assert len(table) == 1 + len(RECIPES) + len(WORKLOADS) + len(GOALS)  # a line each


def test_schemas_describe_every_field(answer):
    schemas = answer("schema")
    assert set(schemas) == {"recipe", "workload", "run", "goal", "decision", "sweep"}
    assert answer("schema", "recipe") == schemas["recipe"]
    for name in ("recipe", "workload"):
        assert all("description" in field for field in schemas[name]["properties"].values())


def test_doctor_tells_what_can_run_and_why_not(answer, cli_run):
    found = answer("doctor", "--json")
    assert found["devices"][0]["id"] == "cpu"
    schemes = {each["name"]: each for each in found["schemes"]}
    assert schemes["none"] == {"name": "none", "available": True, "reason": None}
    assert schemes["torchao-fp8-dynamic"]["available"] is False
    assert "cpu" in schemes["torchao-fp8-dynamic"]["reason"]
    assert {each["name"] for each in found["attention"]} >= {"sdpa", "eager", "flash_attention_2"}
    assert {each["name"] for each in found["kv_kinds"]} >= {"dynamic", "offloaded"}
    assert found["store"]["ok"] is True
    code, out, _ = cli_run("doctor")
    assert code == 0
    assert "torchao-fp8-dynamic" in out


def test_doctor_tells_which_engines_there_are(answer, cli_run, tmp_path, monkeypatch):
    monkeypatch.delenv("MCP_VLLM_PYTHON", raising=False)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 0.5.23\n")
    python.chmod(0o755)
    monkeypatch.setenv("MCP_SGLANG_PYTHON", str(python))
    engines = {each["name"]: each for each in answer("doctor", "--json")["engines"]}
    assert engines["transformers"]["available"] is True
    assert "no interpreter that has vllm" in engines["vllm"]["reason"]
    assert engines["vllm"]["version"] is None
    assert engines["sglang"]["version"] == "0.5.23"
    code, out, _ = cli_run("doctor")
    assert code == 0
    assert "no interpreter that has vllm" in out
    assert "MCP_VLLM_PYTHON" in engines["vllm"]["fix"]
    assert "MCP_VLLM_PYTHON" in out


def test_doctor_says_what_is_broken(answer, home):
    home.mkdir()
    (home / "runs.sqlite").write_bytes(b"no database" * 1000)
    found = answer("doctor", "--json")
    assert found["store"]["ok"] is False
    assert "move it away" in found["store"]["hint"]


@pytest.mark.parametrize("verb", ["models", "recordings", "texts", "runs"])
def test_list_is_what_comes_without_an_action(verb, answer, cli_run):
    assert cli_run(verb, "list") == cli_run(verb)
    assert answer(verb, "list", "--json") == answer(verb, "--json", "list") == answer(verb, "--json") == []


def test_footprint_of_a_shape_has_its_exact_sizes(answer, cli_run):
    found = answer("footprint", "llama-2-7b-shape", "--json")
    assert found["parameters"] == 6_738_415_616
    assert found["kv_bytes_per_token"] == 2 * 32 * 4096 * 2
    assert found["weights_bytes"] == pytest.approx(2 * 6_738_415_616, rel=1e-3)
    assert found["peak_bytes"] > found["weights_bytes"]
    assert isinstance(found["fits"], bool)
    halved = answer("footprint", "llama-2-7b-shape", "--json", "--set", "quantization.scheme=bnb-int8")
    assert halved["weights_bytes"] < 0.6 * found["weights_bytes"]
    code, out, _ = cli_run("footprint", "llama-2-7b-shape")
    assert code == 0
    assert "13.48 GB" in out
    assert found["reason"] in out


def test_footprint_says_why_layers_stay_dense_and_what_needs_adds_to_the_peak(cli_run):
    shape = ("llama-2-7b-shape", "--set", "device=cpu", "--set", "quantization.scheme=torchao-int4-weight-only")
    code, out, _ = cli_run("footprint", *shape, "--set", "quantization.group_size=256")
    assert code == 0
    assert "WHY DENSE" in out
    assert "11008 inputs" not in out  # 11008 is a multiple of 256: nothing is made up
    odd = {"layers": 1, "hidden": 192, "intermediate": 256, "heads": 3, "kv_heads": 3, "vocab": 320}
    custom = json.dumps({"source": "shape", "id": "custom", "shape": odd})
    code, out, _ = cli_run("footprint", shape[0], "--set", f"model={custom}", *shape[1:])
    assert code == 0
    code, out, _ = cli_run(
        "footprint", shape[0], "--set", f"model={custom}", *shape[1:], "--set", "quantization.group_size=128"
    )
    assert "192 inputs are not a multiple of 128 (the group size)" in out
    assert "The program itself, beside it" in out
    assert "the program itself included" in out or "to load" in out


def test_footprint_answers_for_a_context_and_users_at_once(answer, cli_run):
    preset = ("llama-2-7b-shape", "--set", "device=cpu", "--set", "quantization.scheme=bnb-nf4")
    asked = ("footprint", *preset, "--json", "--context", "1000", "--concurrency")
    one, three = answer(*asked, "1"), answer(*asked, "3")
    assert (three["context_tokens"], three["concurrency"]) == (1000, 3)
    assert three["kv_bytes"] == 3 * one["kv_bytes"] == 3 * 1000 * one["kv_bytes_per_token"]
    assert three["longest_context_tokens"] <= one["longest_context_tokens"] <= 4096
    assert sum(module["bytes"] for module in one["modules"]) == one["weights_bytes"]
    assert one["correction"] == {"bytes": 0, "runs": 0}
    code, out, _ = cli_run("footprint", *preset, "--context", "1000")
    assert code == 0
    assert f"Users at 1,000 tokens that fit: {one['users']:,}" in out
    assert "model.layers.*.mlp.up_proj" in out
    code, _, err = cli_run("footprint", *preset, "--context", "5000")
    assert code == 2
    assert "the model's context is 4,096" in err


def test_settings_are_json_else_text_and_may_name_the_recipe(answer, tiny):
    plain = answer("footprint", tiny, "--json")
    bare = answer("footprint", tiny, "--json", "--set", "dtype=bf16")
    named = answer("footprint", tiny, "--json", "--set", "recipe.dtype=bf16", "--set", "model.shape.layers=2")
    assert bare["weights_bytes"] * 2 == plain["weights_bytes"]
    assert named["kv_bytes_per_token"] == 2 * bare["kv_bytes_per_token"]


def test_models_lists_nothing_on_a_fresh_machine(answer, cli_run, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert answer("models", "--json") == []
    assert "No model" in cli_run("models")[1]


def test_models_lists_and_deletes_what_is_prepared(answer, cli_run, home, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    sha256, meta = "ab" * 32, {"title": "A model", "created": "2026-11-01T00:00:00+00:00"}
    folder = home / "models" / sha256
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 5000)
    (folder / "meta.json").write_text(json.dumps(meta | {"id": sha256, "source": "test"}))
    listed = answer("models", "--json")
    assert [(model["id"], model["title"]) for model in listed] == [(sha256, "A model")]
    assert listed[0]["bytes"] > 5000
    assert "A model" in cli_run("models")[1]
    assert cli_run("models", "delete", sha256)[0] == 0
    assert not folder.exists()


@pytest.fixture
def stored(request):
    """Three Runs in the store, newest last."""
    from mcp_core import hardware
    from mcp_core.errors import WorkerDied
    from mcp_core.evaluation.benchmark import unmeasured

    machine = hardware.detect()
    runs = [unmeasured(bundled(), Workload(), machine, WorkerDied(f"cause {n}", "hint")) for n in range(3)]
    with Store() as store:
        for run in runs:
            store.add(run)
    return runs


def test_runs_are_listed_shown_and_deleted(answer, cli_run, stored):
    assert [run["id"] for run in answer("runs", "--json")] == [run.id for run in reversed(stored)]
    assert [run["id"] for run in answer("runs", "--json", "--limit", "1")] == [stored[2].id]
    for spelled in (("list", "--limit", "1", "--json"), ("--limit", "1", "--json", "list")):
        assert [run["id"] for run in answer("runs", *spelled)] == [stored[2].id]
    code, out, err = cli_run("runs", "--limit", "2")
    assert (code, out.count("failed")) == (0, 2)
    assert "2 of 3" in err
    assert Run.model_validate(answer("runs", "show", stored[0].id, "--json")) == stored[0]
    assert "cause 0" in cli_run("runs", "show", stored[0].id)[1]
    assert cli_run("runs", "delete", stored[0].id)[0] == 0
    assert len(answer("runs", "--json")) == 2


def test_runs_are_tagged_noted_and_found_by_tag(answer, cli_run, stored):
    first, other = stored[0].id, stored[1].id
    assert cli_run("runs", "tag", first, "release  candidate", "best", "best")[0] == 0
    assert cli_run("runs", "note", first, "Fastest so far.")[0] == 0
    assert cli_run("runs", "tag", other, "best")[0] == 0
    assert [run["id"] for run in answer("runs", "--tag", "release candidate", "--json")] == [first]
    code, out, err = cli_run("runs", "--tag", "best", "--limit", "1")
    assert (code, other in out, first in out) == (0, True, False)
    assert "1 of 2" in err
    shown = cli_run("runs", "show", first)[1]
    assert "tags: best, release candidate\n" in shown
    assert "note: Fastest so far.\n" in shown
    assert "best" not in cli_run("runs", "untag", first, "best", "never there")[2]
    assert cli_run("runs", "note", first, "")[0] == 0
    assert cli_run("runs", "untag", first, "release candidate")[2] == f"{first}: no tags, no note\n"
    assert cli_run("runs", "--tag", "nobody's")[1] == "No Run has this tag.\n"


@pytest.mark.parametrize("tag", ["", "a,b", "x" * 41, "line\x00"])
def test_what_is_no_tag_is_refused_and_changes_nothing(cli_run, stored, tag):
    code, _, err = cli_run("runs", "tag", stored[0].id, "good", tag)
    assert code == 2
    assert "a tag has 1 to 40 letters and no comma" in err
    assert "tags:" not in cli_run("runs", "show", stored[0].id)[1]


def test_a_run_that_its_machine_has_outgrown_is_stale(cli_run, home):
    with Store() as store:
        made = [planted_run(Law(), 4, start=start, requests=4)[0] for start in (0, 1)]
        for run, version in zip(made, ("2.11.0", "2.12.0"), strict=True):
            store.add(run.model_copy(update={"versions": {"torch": version}}))
    listed = cli_run("runs")[1].splitlines()
    assert [line.partition("  ")[0] for line in listed if "ok, stale" in line] == [made[0].id]
    assert "stale: torch 2.11.0 then, 2.12.0 now\n" in cli_run("runs", "show", made[0].id)[1]


# bench


@pytest.fixture
def fake_worker(monkeypatch):
    """Workers are fakes with these options."""

    def use(*options: str) -> None:
        command = (sys.executable, str(FAKE_WORKER), *options)
        for verb in ("bench", "serve"):
            monkeypatch.setattr(f"mcp_core.commands.{verb}.Supervisor", functools.partial(Supervisor, command))

    # Imported by the command line itself otherwise, after the patch.
    __import__("mcp_core.commands.bench")
    __import__("mcp_core.commands.serve")
    return use


def stored_run() -> Run:
    with Store() as store:
        (run,) = store.list()
    return run


def test_bench_stores_writes_and_shows_one_run(cli_run, fake_worker, tiny, quick, tmp_path):
    fake_worker()
    out_file = tmp_path / "run.json"
    code, out, err = cli_run("bench", tiny, quick, "--out", str(out_file), "--set", "workload.seed=5")
    run = Run.model_validate_json(out_file.read_text())
    assert (code, run.status) == (0, "ok")
    assert run == stored_run()
    assert run.workload.seed == 5
    assert run.measurement.completed == 4
    assert run.memory.peak_bytes == 2000
    document = json.loads(out_file.read_text())
    assert document["measurement"]["ttft_ms"]["n"] == 4
    assert document["energy_j_per_token"] is None
    with Store() as store:
        assert len(store.records(run.id)) == 4
    assert "TPOT" in out
    assert "too few" in out
    assert "load  50%" in err
    assert f"stored as {run.id}" in err
    assert devices.holders("cpu") == ()


def test_bench_answers_with_the_run_and_reports_progress_as_json(cli_run, fake_worker, tiny, quick):
    fake_worker()
    code, out, err = cli_run("bench", tiny, quick, "--json", "--progress", "json")
    assert code == 0
    assert Run.model_validate_json(out) == stored_run()
    events = [json.loads(line) for line in err.splitlines()]
    stages = list(dict.fromkeys(event["stage"] for event in events))
    assert stages == ["load", "warm-up", "measure"]
    assert events[-1]["fraction"] == 1
    assert set(events[-1]) == {"event", "stage", "fraction", "message", "elapsed_s", "remaining_s"}
    elapsed = [event["elapsed_s"] for event in events]
    assert elapsed == sorted(elapsed)  # one clock, whichever part reports


def test_progress_has_one_clock_for_the_whole_command(capsys, monkeypatch):
    """A part's own clock would say "1.6 s" and then "37.9 s", which reads as a wait."""
    clock_s = [100.0]
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: clock_s[0]))
    report = ProgressReport(as_json=False)
    for after_s, progress in (
        (136.3, Progress("measure", 1.0, "", 1.6)),
        (136.5, Progress("record", 0.0, "", 0.1)),
    ):
        clock_s[0] = after_s
        report(progress)
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["36.3", "36.5"]


def test_a_failed_load_is_a_stored_run(cli_run, fake_worker, tiny, quick, tmp_path):
    fake_worker("--fail")
    code, _, err = cli_run("bench", tiny, quick, "--out", str(tmp_path / "run.json"))
    assert code == 1
    assert "error: A planted failure.\nhint: Plant none.\n" in err
    run = stored_run()
    assert (run.status, run.failure.kind, run.measurement) == ("failed", "load", None)
    assert Run.model_validate_json((tmp_path / "run.json").read_text()) == run


def test_a_worker_that_dies_while_measured_is_a_stored_run(cli_run, fake_worker, tiny, quick):
    fake_worker("--die-after", "1.5", "--ttft-ms", "400")
    code, _, err = cli_run("bench", tiny, quick, "--set", "workload.requests=50")
    assert code == 1
    assert "Traceback" not in err
    run = stored_run()
    assert run.status == "failed"
    assert run.failure.kind == "worker"
    assert "exit code 7" in run.failure.message  # how its process ended, not only that the connection did
    assert run.measurement.completed + run.measurement.failed == 50


def test_a_store_that_cannot_be_used_is_told_before_anything_is_loaded(cli_run, fake_worker, tiny, quick, home):
    fake_worker()
    home.mkdir()
    (home / "runs.sqlite").write_bytes(b"no database" * 1000)
    code, out, err = cli_run("bench", tiny, quick)
    assert (code, out) == (1, "")
    assert is_two_lines(err)  # no line of progress


def test_a_run_that_cannot_be_stored_is_shown_and_written(cli_run, fake_worker, tiny, quick, tmp_path, monkeypatch):
    def full(*_):
        raise StoreError("The disk is full.", "Free some.")

    fake_worker()
    monkeypatch.setattr(Store, "add", full)
    code, out, err = cli_run("bench", tiny, quick, "--json", "--out", str(tmp_path / "run.json"))
    assert code == 1
    assert Run.model_validate_json(out).measurement.completed == 4
    assert Run.model_validate_json((tmp_path / "run.json").read_text()) == Run.model_validate_json(out)
    assert "error: The disk is full." in err


def test_a_full_disk_is_named(cli_run, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mcp_core.commands.models.prepared.list_models", full)
    code, _, err = cli_run("models")
    assert code == 1
    assert is_two_lines(err)
    assert "full" in err
    assert "MCP_HOME" in err


def test_footprint_says_what_cannot_run_here(answer, cli_run):
    settings = ("--set", "device=cpu", "--set", "attention=flash_attention_2")
    (conflict,) = answer("footprint", "llama-2-7b-shape", *settings, "--json")["conflicts"]
    assert conflict["field"] == "attention"
    _, out, _ = cli_run("footprint", "llama-2-7b-shape", *settings)
    assert f"Cannot run here: attention: {conflict['reason']}" in out
    assert answer("footprint", "llama-2-7b-shape", "--json")["conflicts"] == []


def test_a_length_in_a_setting_may_be_one_number(cli_run, fake_worker, tiny, quick):
    fake_worker()
    code, _, err = cli_run("bench", tiny, quick, "--set", "workload.prompt_tokens=7")
    assert code == 0, err
    assert stored_run().workload.prompt_tokens == Lengths(min=7, max=7)


def test_a_model_larger_than_memory_is_a_refused_run(cli_run, fake_worker, quick):
    fake_worker()
    huge = ("--set", "model.source=shape", "--set", "model.id=custom", "--set")
    shape = {"layers": 400, "hidden": 16384, "intermediate": 65536, "heads": 128, "kv_heads": 128, "vocab": 1000}
    code, _, err = cli_run("bench", "bundled", quick, *huge, f"model.shape={json.dumps(shape)}")
    assert code == 1
    assert "--force" in err
    assert stored_run().status == "refused"
    assert stored_run().failure.kind == "memory"


def test_a_device_that_is_being_measured_is_a_refused_run(cli_run, fake_worker, tiny, quick):
    fake_worker()
    with devices.acquire("cpu", "chat", "another chat"):
        code, _, err = cli_run("bench", tiny, quick)
    assert code == 1
    assert "another chat" in err
    assert stored_run().failure.kind == "busy"


def test_bench_measures_a_running_server(cli_run, quick):
    from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw

    with FakeServer(LatencyLaw(5, 1)) as server:
        code, out, _ = cli_run("bench", "bundled", quick, "--url", server.url)
    assert code == 0
    run = stored_run()
    assert (run.recipe.model.source, run.recipe.model.id, run.recipe.engine) == (
        "endpoint",
        server.url,
        "endpoint",
    )
    assert run.measurement.completed == 4
    assert "not comparable: endpoint" in out


def test_bench_of_a_server_that_is_not_there_is_a_failed_run(cli_run, quick):
    code, _, err = cli_run("bench", "bundled", quick, "--url", "http://127.0.0.1:9")
    assert code == 1
    assert "error: " in err
    assert "hint: " in err
    assert stored_run().status == "failed"


# In a process of its own: signals, pipes, start-up

FAKED = f"""
import functools, sys
import mcp_core.commands.bench as bench, mcp_core.commands.serve as serve
from mcp_core.serving.supervisor import Supervisor
fake = functools.partial(Supervisor, [sys.executable, {str(FAKE_WORKER)!r}, *sys.argv[1].split()])
bench.Supervisor = serve.Supervisor = fake
from mcp_core.cli import main
sys.exit(main(sys.argv[2:]))
"""


def start(*arguments: str, options: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FAKED, options, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_ready_and_ends_without_orphans(tiny, number):
    with start("serve", tiny) as process:
        line = process.stdout.readline()
        workers = children_of(process)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert line.startswith("ready http://127.0.0.1:")
    assert workers
    assert process.returncode == 0
    assert "Traceback" not in err
    assert psutil.wait_procs(workers, timeout=5)[1] == []


def test_serve_exits_1_when_its_worker_dies(tiny):
    with start("serve", tiny, options="--die-after 1") as process:
        out, err = process.communicate(timeout=30)
    assert out.startswith("ready ")
    assert process.returncode == 1
    assert "error: The worker ended by itself" in err
    assert "Traceback" not in err


def test_serve_exits_1_when_loading_fails(tiny):
    with start("serve", tiny, options="--fail") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    assert err.endswith("error: A planted failure.\nhint: Plant none.\n")


def test_stopping_serve_while_it_loads_leaves_no_orphan(tiny):
    with start("serve", tiny, options="--never-ready") as process:
        assert "load" in process.stderr.readline()
        workers = children_of(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert workers
    assert psutil.wait_procs(workers, timeout=5)[1] == []


@pytest.mark.parametrize(("options", "measured"), [("--ttft-ms 300", True), ("--never-ready", False)])
def test_stopping_bench_stores_a_cancelled_run(tiny, quick, options, measured):
    with start(
        "bench", tiny, quick, "--set", "workload.requests=100", "--progress", "json", options=options
    ) as process:
        for line in process.stderr:
            if not measured or '"2 of 100 requests"' in line:
                break
        workers = children_of(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    run = stored_run()
    assert run.status == "cancelled"
    assert (run.measurement is not None) is measured
    if measured:
        assert run.measurement.completed >= 2
        assert run.measurement.cancelled == 1


def test_a_reader_that_goes_away_is_no_traceback():
    command = [sys.executable, "-m", "mcp_core.cli", "schema"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_starting_imports_neither_heavy_libraries_nor_other_verbs():
    code = (
        "import sys; from mcp_core.cli import main; code = main(['preset']);"
        "heavy = {'torch', 'transformers', 'numpy', 'aiohttp', 'sqlalchemy', 'huggingface_hub'} & set(sys.modules);"
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"


def test_capacity_of_a_running_server_stores_its_points(cli_run, quick, tmp_path):
    from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw

    goal = tmp_path / "goal.json"
    goal.write_text('{"slo": {"tpot_ms": {"p50": 28}}}')
    out = tmp_path / "capacity.json"
    with FakeServer(LatencyLaw(1, 5, crowd_ms=10)) as server:  # three clients: 5 + 2 * 10 ms
        code, said, _ = cli_run(
            "capacity", "bundled", quick, "--url", server.url, "--goal", str(goal), "--out", str(out),
            "--set", "workload.requests=12", "--set", "workload.output_tokens=5",
        )  # fmt: skip
    found = json.loads(out.read_text())
    assert code == 0
    assert (found["best"], found["broken_at"], found["ended"]) == (3, 4, "found")
    with Store() as store:
        assert {run.id for run in store.list()} == {point["run_id"] for point in found["points"]}
    assert "3 users meet every limit, 4 do not" in said
    assert "p50 TPOT" in said


def test_capacity_s_budget_cuts_its_first_point(cli_run, quick):
    """By a server that takes longer for one reply; what was measured until then is kept as a Run."""
    from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw

    goal = '{"slo": {"tpot_ms": {"p50": 28}}}'
    with FakeServer(LatencyLaw(1500, 5)) as server:
        code, out, err = cli_run(
            "capacity", "bundled", quick, "--url", server.url, "--goal", goal, "--budget", "0.6",
            "--set", "workload.warmup_requests=0",
        )  # fmt: skip
        time.sleep(1.2)  # its reply ends, with nobody there to read it
    assert code == 1
    assert out.strip().startswith("No load was measured to its end. 0 points in 1 s.")
    assert "The time was up before a load of 1 " in err
    assert stored_run().status == "cancelled"


def test_capacity_without_a_limit_or_of_a_wrong_goal_is_refused(cli_run, quick, monkeypatch):
    fixed = ("capacity", "bundled", quick, "--url", "http://127.0.0.1:9", "--goal")
    code, _, err = cli_run(*fixed, "{}")
    assert (code, "no latency limit" in err) == (2, True)
    monkeypatch.setattr("mcp_core.commands.capacity.Supervisor", None)  # nothing is loaded to find that out
    code, _, err = cli_run("capacity", "bundled", quick, "--goal", "{}")
    assert (code, "no latency limit" in err) == (2, True)
    code, _, err = cli_run(*fixed, '{"slo": {"ttft_ms": {"p94": 5}}}')
    assert (code, "p94" in err) == (2, True)


def test_recordings_are_added_listed_and_replayed(cli_run, answer, quick, tmp_path):
    from mcp_core.evaluation.fake_server import FakeServer, LatencyLaw

    rows = tmp_path / "trace.csv"
    rows.write_text("at_s,prompt_tokens,output_tokens\n0,5,2\n0.2,7,3\n")
    assert "mcp-core recordings add FILE" in cli_run("recordings")[1]
    added = answer("recordings", "--json", "add", str(rows))
    assert answer("recordings", "--json") == [added]
    assert (added["name"], added["requests"], added["duration_s"]) == ("trace.csv", 2, 0.2)
    source = json.dumps({"kind": "recording", "sha256": added["sha256"]})
    with FakeServer(LatencyLaw(5, 1)) as server:
        code, out, _ = cli_run(
            "bench", "bundled", quick, "--url", server.url,
            "--set", f"workload.prompts={source}", "--set", "workload.arrivals.kind=replay",
        )  # fmt: skip
    assert (code, "quick: as recorded" in out) == (0, True)
    assert stored_run().measurement.output_tokens == 5
    assert cli_run("recordings", "add", str(tmp_path / "none.csv"))[0] == 2


def test_goal_presets_are_listed_and_printed(answer):
    assert "mlperf-chat" in answer("preset", "--json")["goals"]
    assert answer("preset", "mlperf-chat")["slo"] == {"ttft_ms": {"p99": 500.0}, "tpot_ms": {"p99": 30.0}}


def test_capacity_says_beforehand_how_many_requests_a_point_takes(cli_run, quick):
    fixed = ("capacity", "bundled", quick, "--url", "http://127.0.0.1:9", "--set", "workload.requests=12", "--goal")
    _, _, err = cli_run(*fixed, '{"slo": {"ttft_ms": {"p95": 500}}}')
    assert "a point takes 210 requests, not 12" in err
    _, _, err = cli_run(*fixed, '{"slo": {"ttft_ms": {"p50": 500}}}')
    assert "a point takes" not in err
