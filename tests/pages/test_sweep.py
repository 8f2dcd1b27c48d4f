"""The Sweep part of the Measure page: what it says before, while and after."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.decision.sweep_record import CellRecord, SweepRecord, SweepRun
from mcp_core.evaluation.sweep_table import SweepRow
from mcp_core.presets import bundled
from mcp_core.results import Failure, Fidelity
from mcp_core.sweep_plan import Axes, SweepPlan
from mcp_core.workload import short_chat

Page = Callable[[str], AppTest]
NF4 = bundled().replace({"quantization.scheme": "bnb-nf4"})
MISFIT = Failure(kind="memory", message="Does not fit: needs 90 GB.", hint="Less.")


def texts(at: AppTest) -> str:
    return "\n".join(each.value for each in (*at.markdown, *at.caption, *at.warning, *at.error))


def started(wb: fakes.FakeWorkbench) -> list[SweepPlan]:
    return [call[1] for call in wb.calls if call[0] == "start_sweep"]


@pytest.fixture
def record(wb: fakes.FakeWorkbench) -> SweepRecord:
    plan = SweepPlan(name="mine", base=bundled(), axes=Axes(scheme=("none", "bnb-nf4")), workload=short_chat())
    cells = (
        CellRecord(0, "unquantized", bundled(), "done", "confirm", runs=(SweepRun("r0", "confirm"),)),
        CellRecord(1, "bnb-nf4", NF4, "refused", failure=MISFIT),
    )
    made = SweepRecord("s1", fakes.CREATED, plan, "interrupted", "example", "cpu", cells)
    run = fakes.ok_run("r0")
    wb.sweeps.records = (made,)
    wb.sweeps.rows_of["s1"] = (
        SweepRow(cells[0], "confirm", run, (run,), (29.9, 29.9), "1 fresh start"),
        SweepRow(cells[1], None, None, (), None, "refused"),
    )
    return made


def test_an_axis_that_is_not_varied_shows_the_recipes_value(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("measure")
    at.session_state["mcp_recipe"] = bundled().replace({"dtype": "bf16", "kv.max_context": 2048})
    at.run()
    shown = {each.key: each.proto.placeholder for each in at.multiselect}
    assert shown["sweep-scheme"] == "As in the Recipe: unquantized"
    assert shown["sweep-dtype"] == "As in the Recipe: bf16"
    assert shown["sweep-max_context"] == "As in the Recipe: 2,048"
    assert shown["sweep-batching"] == "As in the Recipe: off"


def test_axes_make_cells_with_reasons_and_device_time_before_the_start(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("measure").run()
    at.multiselect(key="sweep-scheme").set_value(["none", "bnb-nf4", "torchao-fp8-dynamic"]).run()
    assert not at.exception
    assert "2 configurations, 1 more refused: about" in texts(at)
    assert "Load times are estimated" in texts(at)
    assert "short-chat is a smoke test: what it measures decides nothing." in texts(at)
    (cells,) = [each.value for each in at.dataframe if "Why not" in each.value]
    assert list(cells["Fits"]) == ["yes", "yes", "refused"]
    assert "no kernel for cpu" in cells["Why not"].iloc[2]
    at.button(key="sweep-start").click().run()
    (plan,) = started(wb)
    assert plan.axes.scheme == ("none", "bnb-nf4", "torchao-fp8-dynamic")
    assert (plan.base, plan.workload.name) == (bundled(), "short-chat")
    assert at.button(key="sweep-start").disabled
    assert "A sweep is running or waiting" in texts(at)


def test_a_fidelity_limit_goes_into_the_plan(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("measure").run()
    at.toggle(key="sweep-fidelity").set_value(True)
    at.number_input(key="sweep-kl-over-floor-max").set_value(20.0).run()
    assert not at.exception
    at.button(key="sweep-start").click().run()
    (plan,) = started(wb)
    assert (plan.fidelity, plan.judges_fidelity) == (True, True)
    assert plan.goal is not None
    assert plan.goal.fidelity.kl_over_floor_max == 20.0


def test_fidelity_stands_beside_speed_with_why_it_is_lacking(
    wb: fakes.FakeWorkbench, page: Page, record: SweepRecord
) -> None:
    measured = Fidelity(status="measured", kl_over_floor=5.7)
    silent = Fidelity(status="not-measurable", reason="The server gives no log-probabilities of a prompt.")
    first, second = wb.sweeps.rows_of["s1"]
    done = dataclasses.replace(second.cell, state="done", failure=None)
    wb.sweeps.rows_of["s1"] = (
        dataclasses.replace(first, run=fakes.ok_run("r0").model_copy(update={"fidelity": measured})),
        dataclasses.replace(second, cell=done, run=fakes.ok_run("r1").model_copy(update={"fidelity": silent})),
    )
    at = page("measure").run()
    (rows,) = [each.value for each in at.dataframe if "How far" in each.value]
    assert rows["KL, × noise floor"].iloc[0] == 5.7
    assert rows["KL, × noise floor"].isna().iloc[1]
    (why,) = [each.value for each in at.table if "Reason" in each.value]
    assert list(why["Reason"]) == [f"Fidelity not measured\\: {silent.reason}"]
    (column,) = [
        json.loads(each.proto.columns)["KL, × noise floor"] for each in at.dataframe if "How far" in each.value
    ]
    assert "multiples of the noise floor" in column["help"]


def test_a_preset_is_taken_whole(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("measure").run()
    at.segmented_control(key="sweep-preset").set_value("article").run()
    assert "The article's table" in texts(at)
    at.button(key="sweep-start").click().run()
    assert started(wb)[0].name == "article"


def test_what_is_no_context_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("measure").run()
    at.multiselect(key="sweep-max_context").set_value(["many"]).run()
    assert '"many" is no number of tokens.' in texts(at)
    assert not [button for button in at.button if button.key == "sweep-start"]


def test_nothing_that_can_run_cannot_be_started(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("measure").run()
    at.multiselect(key="sweep-scheme").set_value(["torchao-fp8-dynamic"]).run()
    assert at.button(key="sweep-start").disabled
    assert "None of these configurations can run here." in texts(at)


def test_an_interrupted_sweep_shows_its_rows_and_resumes(
    wb: fakes.FakeWorkbench, page: Page, record: SweepRecord
) -> None:
    at = page("measure").run()
    assert "**Mine**: interrupted, 2 of 2 configurations are settled, 1 of them refused" in texts(at)
    (rows,) = [each.value for each in at.dataframe if "How far" in each.value]
    assert list(rows["State"]) == ["done", "refused"]
    assert (rows["Throughput, tok/s"].iloc[0], rows["Run"].iloc[0]) == (29.9, "runs?run=r0")
    (why,) = [each.value for each in at.table if "Reason" in each.value]
    assert list(why["Configuration"]) == [rows["Configuration"].iloc[1]]  # only of those that have a reason
    assert list(why["Reason"]) == [MISFIT.message.replace(":", "\\:")]  # no Markdown in it
    assert [each.label for each in at.expander if "Why not" in each.label] == ["Why not: 1 configuration"]
    at.button(key="sweep-resume-s1").click().run()
    assert ("resume_sweep", "s1") in wb.calls
    assert not at.exception


def test_one_that_runs_is_followed_and_can_be_cancelled(
    wb: fakes.FakeWorkbench, page: Page, record: SweepRecord
) -> None:
    wb.sweeps.records = (dataclasses.replace(record, state="running"),)
    wb.add(fakes.study_job("sweep"))
    at = page("measure").run()
    assert not at.exception
    assert "**Mine**: running" in texts(at)
    at.button(key="cancel-sweep-1").click().run()
    assert ("cancel_job", "sweep-1") in wb.calls
