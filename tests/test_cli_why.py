"""mcp-core why, and doctor --measure: what is stored and measured, told."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from mcp_core import ceilings, cli, hardware
from mcp_core.ceilings import Ceilings
from mcp_core.commands import bench_profile, doctor, why
from mcp_core.commands.output import ProgressReport
from mcp_core.decision.store import Store
from mcp_core.errors import Busy, InputError
from mcp_core.presets import bundled, bundled_llama_cpp
from mcp_core.profile_plan import ProfileLoad
from mcp_core.results import Failure, now
from mcp_core.workload import Lengths, Workload
from tests.evaluation.why_cases import MACHINE, run


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MCP_HOME", str(tmp_path))
    monkeypatch.delenv("MCP_STORE_URL", raising=False)
    return tmp_path


@pytest.fixture
def answer(capsys):
    """Exit code, stdout and stderr."""

    def ask(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


def keep(*runs):
    with Store() as store:
        for each in runs:
            store.add(each)


@pytest.fixture
def h100(monkeypatch):
    """This machine has the H100 of the cases."""
    monkeypatch.setattr(why.hardware, "detect", lambda: MACHINE)


@pytest.mark.usefixtures("h100")
def test_the_newest_run_is_explained(answer):
    keep(run(clients=16, queue_ms=15 * 5100.0))
    code, out, err = answer("why")
    assert code == 0
    assert out.startswith("Run 20261125-120000-aaaaaaaa: Queue-bound, confidence high\n")
    assert "--set batching.mode=continuous" in out
    assert "decode step" in out  # the roofline's row
    assert err == ""


@pytest.mark.usefixtures("h100")
def test_as_a_document(answer):
    keep(run(step_ms=38.1))
    code, out, _ = answer("why", "20261125-120000-aaaaaaaa", "--json")
    found = json.loads(out)
    assert (code, found["run"], found["verdict"]) == (0, "20261125-120000-aaaaaaaa", "launch")
    assert found["change"]["fields"] == {"compile": "graphs"}
    assert found["roofline"]["decode"]["mbu"] == pytest.approx(0.117, abs=0.001)
    assert {"what", "figure", "limit", "source"} == set(found["evidence"][0])
    assert found["to_decide"]


@pytest.mark.usefixtures("h100")
def test_a_run_that_failed_says_by_what(answer):
    failure = Failure(kind="oom", message="Memory ran out.")
    keep(run().model_copy(update={"status": "failed", "measurement": None, "failure": failure}))
    code, out, _ = answer("why")
    assert code == 0
    assert "It is failed: Memory ran out." in out


@pytest.mark.usefixtures("h100")
def test_a_run_in_a_file_is_explained_like_a_stored_one(answer, tmp_path):
    asked, file = run(step_ms=38.1), tmp_path / "run.json"
    file.write_text(asked.model_dump_json(indent=2))
    code, out, err = answer("why", str(file), "--json")
    assert (code, err) == (0, "")
    keep(asked)
    assert answer("why", asked.id, "--json")[1] == out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not hold one Run: this is not one JSON document"),
        (b'{"run": 1}\n{"run": 2}\n', "mcp-core runs merge FILE"),
        (b"\xff\x00", "this is not one JSON document"),
        (b"[]", "is no Run"),
        (b"{}", "is no Run: id: Field required"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_holds_no_run_is_said(answer, tmp_path, content, words):
    file = tmp_path / "run.json"
    if content is not None:
        file.write_bytes(content)
    for verb in (["why", str(file)], ["compare", str(file), str(file)]):
        code, out, err = answer(*verb)
        assert (code, out) == (2, "")
        assert words in err
        assert len(err.splitlines()) == 2


def test_a_folder_is_no_run(answer, tmp_path):
    code, _, err = answer("why", str(tmp_path))
    assert code == 2
    assert "Is a directory" in err


def test_what_is_not_there(answer):
    code, _, err = answer("why")
    assert code == 2
    assert "No Run is stored yet" in err
    code, _, err = answer("why", "nobody")
    assert code == 2
    assert 'There is no Run and no file "nobody"' in err


def test_doctor_measures_first_and_tells_what_it_found(answer, monkeypatch):
    asked = []

    def measure(verb, title, request, *, device, progress_as_json):
        asked.append((verb, request, device))
        name = hardware.detect().devices[0].name
        torch = hardware.detect().libraries["torch"]
        rates = {"fp32": 1.05e11, "bf16": 2.2e11}
        ceilings.keep(
            Ceilings(
                device="cpu",
                device_name=name,
                torch=torch,
                threads=request["threads"],
                created=now(),
                read_bytes_s=2.6e10,
                copy_bytes_s=2.5e10,
                matmul_flop_s=rates,
                op_us=2.4,
            )
        )

    monkeypatch.setattr(doctor, "run_job", measure)
    _, out, _ = answer("doctor")
    assert "mcp-core doctor --measure" in out
    code, out, _ = answer("doctor", "--measure", "--threads", "1")
    assert code == 0
    assert asked[0] == ("ceilings", {"device": "cpu", "threads": 1}, "cpu")
    row = next(line for line in out.splitlines() if "26.00 GB/s" in line)
    assert row.split()[:2] == ["cpu", "1"]
    assert "0.105" in row
    assert "2.4 us" in row


def test_bench_profile_records_the_load_that_was_measured():
    burst = Workload(requests=400, concurrency=400, prompt_tokens=Lengths(min=16, max=96), output_tokens=4)
    assert bench_profile.load_of(burst) == ProfileLoad(concurrency=256, prompt_tokens=56, output_tokens=4)
    assert bench_profile.load_of(Workload()) == ProfileLoad(concurrency=1, prompt_tokens=64, output_tokens=8)


def test_bench_profile_is_refused_before_anything_starts(answer):
    bench_profile.require_recordable(bundled())
    with pytest.raises(InputError, match="records no trace"):
        bench_profile.require_recordable(bundled_llama_cpp())
    code, _, err = answer("bench", "bundled", "short-chat", "--profile", "--url", "http://127.0.0.1:1")
    assert code == 2
    assert "records no profile" in err


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_carries_its_trace_and_outlives_a_failed_one(monkeypatch, capsys, fails):
    asked = []

    async def record(client, plan, load, tell, *, run_id):
        tell("record", 0.5, "half")
        asked.append((load.concurrency, run_id))
        if fails:
            raise Busy("It is measured.", "Wait.")
        return (SimpleNamespace(id="trace-1"),)

    monkeypatch.setattr(bench_profile, "profile", record)
    lease = SimpleNamespace(holder=SimpleNamespace(id="worker"))
    worker = SimpleNamespace(url="http://127.0.0.1:1", token=None, control_url=None, recipe=bundled(), lease=lease)
    worker.recipe = worker.recipe.replace({"device": "cpu"})
    measured = run(clients=4)
    found = asyncio.run(bench_profile.with_trace(measured, worker, ProgressReport(as_json=False)))
    assert asked == [(4, measured.id)]
    assert found.trace_id == (None if fails else "trace-1")
    assert ("no profile: It is measured." in capsys.readouterr().err) is fails
