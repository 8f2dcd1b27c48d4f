"""why: the verdict first, what would help as a link to its Recipe, figures of one Run and of two, the profiler."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.ceilings import Ceilings
from mcp_core.errors import ModelNotFound
from mcp_core.evaluation.step_bar import StepBar
from mcp_core.evaluation.trace_store import KeptTrace
from mcp_core.hardware import Hardware
from mcp_core.results import EngineWork, Quantiles, Run
from mcp_core.trace_summary import PhaseSummary, TraceSummary
from mcp_core.workload import Workload
from pages._ui import why_charts

OpenPage = Callable[[str], AppTest]
CEILINGS = Ceilings.model_validate(
    {
        "device": "cpu",
        "device_name": "Example CPU",
        "torch": "2.13.0",
        "threads": 4,
        "created": fakes.CREATED,
        "read_bytes_s": 200e9,
        "copy_bytes_s": 190e9,
        "matmul_flop_s": {"fp32": 4e12, "bf16": 9e12},
        "op_us": 2.5,
    }
)


def run(run_id: str = "20261120-093000-aaaaaaaa", *, queue_ms: float = 0.0, clients: int = 1, **changes) -> Run:
    """One of the example's, with what the server says of it."""
    recipe = fakes.bundled().replace({"model": fakes.shape_of_1b(), "threads": 4} | changes)
    made = fakes.ok_run(run_id, recipe, workload=Workload(concurrency=clients, requests=16))
    assert made.measurement is not None
    times = {
        name: Quantiles(mean=value, p50=value, n=16)
        for name, value in {"queue_ms": queue_ms, "prefill_ms": 80.0, "decode_ms": 980.0}.items()
    }
    whole = queue_ms + 1061.0
    measured = made.measurement.model_copy(update=times | {"e2e_ms": Quantiles(mean=whole, p50=whole, n=16)})
    work = EngineWork(
        prefill_s=1.28,
        decode_s=15.7,
        decode_steps=496,
        prompt_tokens=1024,
        output_tokens=512,
        cached_prompt_tokens=0,
        kv_evictions=0,
        preemptions=0,
    )
    return made.model_copy(update={"measurement": measured, "engine_work": work})


def trace(of: Run, **parts_ms: float) -> KeptTrace:
    """Kept as the app lists it."""
    decode = PhaseSummary(
        steps=8,
        step_ms=sum(parts_ms.values()) + 2.0,
        parts_ms=parts_ms,
        host_gap_ms=2.0,
        launches=900,
    )
    summary = TraceSummary(
        trace_id=f"t-{of.id}", run_id=of.id, device="cpu", events=9, wall_ms=300.0, decode=decode
    )
    return KeptTrace(summary, Path("trace.json.gz"), 1000)


@pytest.fixture
def measured(wb: fakes.FakeWorkbench) -> fakes.FakeWorkbench:
    """A machine whose ceilings are known."""
    wb.machine = fakes.hardware().model_copy(update={"ceilings": (CEILINGS,)})
    return wb


def words(at: AppTest) -> str:
    shown = (*at.markdown, *at.caption, *at.header, *at.subheader)
    return " ".join(each.value for each in shown).replace("\\", "")


def test_without_runs_it_says_where_they_come_from(page: OpenPage) -> None:
    at = page("why").run()
    assert not at.exception
    assert at.header[0].value == "Nothing has been measured yet"


def test_the_verdict_comes_first_and_its_change_opens_the_recipe(
    page: OpenPage, measured: fakes.FakeWorkbench
) -> None:
    measured.add(run(queue_ms=15_900.0, clients=16))
    at = page("why").run()
    assert not at.exception
    assert at.header[0].value == "Queue-bound"
    assert "waits" in at.markdown[0].value or "waits" in words(at)
    at.button(key="help-20261120-093000-aaaaaaaa").click().run()
    assert session_recipe(at).batching.mode == "continuous"


def session_recipe(at: AppTest):
    return at.session_state["mcp_recipe"]


def test_a_profile_splits_the_step(page: OpenPage, measured: fakes.FakeWorkbench) -> None:
    of = run()
    measured.add(of)
    measured.profiles.kept = [trace(of, gemm=26.0, attention=1.0, elementwise=2.0)]
    at = page("why").run()
    assert not at.exception
    assert at.header[0].value == "Bandwidth-bound"
    assert "By the profile" in words(at)
    assert "Below the ceilings" in words(at)


def test_without_ceilings_a_button_measures_them(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(run())
    at = page("why").run()
    assert not at.exception
    assert at.header[0].value == "Undecided"
    assert "Below the ceilings" not in words(at)
    assert "The ceilings of this Run's device are not measured" in words(at)
    assert "mcp-core doctor --measure --threads 4" in [each.value for each in at.code]
    (figures,) = [each.value for each in at.dataframe if "Measured" in each.value]
    assert "MBU" not in figures
    (button,) = [each for each in at.button if each.label == "Measure this device"]
    button.click().run()
    assert "start_ceilings" in {name for name, *_ in wb.calls}


@pytest.mark.parametrize(
    "elsewhere",
    [
        fakes.hardware().model_copy(update={"host": "elsewhere"}),
        # Lent machines share a name.
        fakes.hardware().model_copy(
            update={"devices": (fakes.hardware().devices[0].model_copy(update={"name": "Another CPU"}),)}
        ),
    ],
    ids=["host", "device"],
)
def test_a_run_of_another_machine_is_not_offered_this_ones_ceilings(
    page: OpenPage, wb: fakes.FakeWorkbench, elsewhere: Hardware
) -> None:
    wb.add(run().model_copy(update={"hardware": elsewhere}))
    at = page("why").run()
    assert "Measured on another machine" in words(at)
    assert "Below the ceilings" not in words(at)
    assert "Measure this device" not in {each.label for each in at.button}


def test_a_link_names_the_run_and_the_other(page: OpenPage, measured: fakes.FakeWorkbench) -> None:
    first, second = run(), run("20261121-093000-bbbbbbbb", dtype="bf16")
    later = second.model_copy(update={"created": first.created + timedelta(days=1)})
    measured.add(first, later)
    measured.profiles.kept = [trace(first, gemm=26.0), trace(later, gemm=12.0, dequantization=30.0)]
    at = page("why")
    at.query_params["run"], at.query_params["against"] = first.id, later.id
    at.run()
    assert not at.exception
    assert at.selectbox[0].value == first.id
    assert at.selectbox[1].value == later.id
    assert "Most of the difference is dequantization: 30 ms more" in words(at)
    assert at.query_params["run"] in (first.id, [first.id])


def test_an_unknown_run_is_said_and_the_newest_shown(page: OpenPage, measured: fakes.FakeWorkbench) -> None:
    measured.add(run())
    at = page("why")
    at.query_params["run"] = "gone"
    at.run()
    assert "There is no Run gone" in at.warning[0].value
    assert at.selectbox[0].value == "20261120-093000-aaaaaaaa"


def test_a_failed_run_and_a_model_that_is_gone(page: OpenPage, measured: fakes.FakeWorkbench) -> None:
    measured.errors["resolve"] = ModelNotFound("There is no such model.", "Download it.")
    measured.add(fakes.failed_run())
    at = page("why").run()
    assert not at.exception
    assert at.header[0].value == "Memory-capacity-bound"
    assert "There is no such model" in words(at)


def test_a_job_that_measures_ceilings_is_followed(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(run(), fakes.study_job("ceilings"))
    wb.studies.newest["ceilings"] = wb.job_views["ceilings-1"]
    at = page("why").run()
    assert not at.exception
    assert any("a part" in each.value for each in at.markdown) or at.get("progress")


def test_the_roofline_has_two_points_a_run_under_its_roof() -> None:
    from mcp_core.evaluation.why import explain

    machine = fakes.hardware().model_copy(update={"ceilings": (CEILINGS,)})
    found = explain(run(), machine, model=fakes.resolved_model())
    assert found.roofline is not None
    figure = why_charts.roofline_figure([why_charts.Placed("fp32", "a" * 64, found.roofline)])
    prefill, decode, roof = figure.data
    assert (prefill.name, decode.name) == ("fp32: prefill", "fp32: decode")
    assert decode.marker.symbol.endswith("-open")
    assert decode.x[0] == pytest.approx(found.roofline.decode.work.intensity)
    assert max(roof.y) == 4e12
    assert roof.y[0] == pytest.approx(roof.x[0] * 200e9)  # the slope is the bandwidth


def test_a_floor_is_hatched_and_a_profile_is_not() -> None:
    traced = StepBar((("weights", 5.0), ("sampling", 0.0), ("host gap", 1.0)), measured=True, step_ms=6.0)
    floor = StepBar((("weights", 4.0), ("not explained", 2.0)), measured=False, step_ms=6.0)
    figure = why_charts.steps_figure([("a", traced), ("b", floor)])
    assert [each.name for each in figure.data] == ["weights", "host gap", "not explained"]  # nothing for nothing
    assert list(figure.data[0].x) == [5.0, 4.0]
    assert list(figure.data[0].marker.pattern.shape) == ["", "/"]
