"""The Handbook page over a FakeWorkbench: what each card says before, while and after it is tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.errors import Busy
from mcp_core.evaluation.experiment_values import Agreement, Comparison, ExperimentResult, Ratio
from mcp_core.evaluation.experiments import EXPERIMENTS
from mcp_core.presets import bundled
from mcp_core.results import Failure
from mcp_core.views import JobView, Progress

Page = Callable[[str], AppTest]


def comparison(what: str = "8 tokens after 256", value: float = 12.3, **changes: object) -> Comparison:
    base = Comparison(
        what=what,
        baseline="cache on",
        changed="cache off",
        baseline_ms=320.0,
        changed_ms=320.0 * value,
        ratio=Ratio(value=value, low=value * 0.9, high=value * 1.1, coverage=0.984),
        repeats=7,
        baseline_peak_bytes=600 * fakes.MB,
        changed_peak_bytes=660 * fakes.MB,
    )
    return base.model_copy(update=changes)


def result(name: str = "kv-cache-off", **changes: object) -> ExperimentResult:
    base = ExperimentResult(
        name=name,
        model="SmolLM2-135M-Instruct",
        device="cpu",
        device_name="Example CPU",
        dtype="fp32",
        threads=4,
        created=fakes.CREATED,
        seconds=60.0,
        comparisons=(comparison(),),
        agreement=Agreement(tokens=9, identical=True),
    )
    return base.model_copy(update=changes)


def job(name: str = "kv-cache-off", **changes: object) -> JobView:
    title = EXPERIMENTS[name].job_title(bundled())
    progress = Progress("measure", 0.5, "8 tokens after 256", elapsed_s=8.0, remaining_s=8.0)
    view = JobView(
        id="j1", verb="experiment", title=title, state="running", created=fakes.CREATED, progress=progress
    )
    return dataclasses.replace(view, **changes)


def texts(at: AppTest) -> str:
    kinds = (at.markdown, at.caption, at.info, at.warning, at.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def calls(wb: fakes.FakeWorkbench, method: str) -> list[tuple]:
    return [call[1:] for call in wb.calls if call[0] == method]


def test_every_piece_of_advice_has_a_card_and_what_a_cpu_cannot_has_a_reason(
    wb: fakes.FakeWorkbench, page: Page
) -> None:
    at = page("handbook").run()
    assert not at.exception
    for each in EXPERIMENTS.values():
        assert f"**{each.title}**" in texts(at)
        assert each.advice in texts(at)
    buttons = {button.key for button in at.button}
    assert {"try-gradient-checkpointing", "try-kv-cache-off", "try-autocast", "try-efficient-attention"} <= buttons
    assert "try-tf32" not in buttons
    assert "try-cudnn-benchmark" not in buttons
    assert "TF32 is a mode of NVIDIA's tensor cores; a CPU has none" in texts(at)
    assert "cuDNN runs on NVIDIA devices only" in texts(at)


def test_an_nvidia_device_can_try_everything_of_its_chapter(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.machine = fakes.hardware(gpu=True)
    buttons = {button.key for button in page("handbook").run().button}
    assert {"try-tf32", "try-cudnn-benchmark", "try-autocast"} <= buttons


def test_one_button_starts_it_and_its_progress_can_be_cancelled(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("handbook").run()
    at.button(key="try-kv-cache-off").click().run()
    assert calls(wb, "start_experiment")[0][:2] == ("kv-cache-off", bundled())
    wb.job_views.clear()
    wb.add(job())
    at.run()
    assert "8 tokens after 256" in at.get("progress")[0].text
    assert "try-kv-cache-off" not in {button.key for button in at.button}
    at.button(key="cancel-j1").click().run()
    assert calls(wb, "cancel_job") == [("j1",)]
    assert "was cancelled" in texts(at)


def test_what_was_measured_stands_beside_the_advice(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.studies.tried = {"kv-cache-off": result()}
    at = page("handbook").run()
    assert not at.exception
    assert "8 tokens after 256: 12 times the time; 10% more memory. The same tokens." in texts(at)
    assert "SmolLM2-135M-Instruct in fp32 on Example CPU, 4 threads, 7 pairs (interval of 98%)" in texts(at)
    rows = at.dataframe[0].value
    assert list(rows["Time"]) == ["320 ms", "3,936 ms"]
    assert list(rows["Time ratio"]) == ["1", "12.30 (11.07–13.53)"]
    assert list(rows["Memory"]) == ["600 MB", "660 MB"]
    assert at.button(key="try-kv-cache-off").label == "Try again"


def test_what_a_lossy_way_costs_in_quality_is_told(wb: fakes.FakeWorkbench, page: Page) -> None:
    lossy = result("classic-dynamic", agreement=Agreement(tokens=512, top1=0.421, kl_mean=1.08))
    wb.studies.tried = {"classic-dynamic": lossy}
    at = page("handbook").run()
    assert {metric.label: metric.value for metric in at.metric} == {
        "Top-1 agreement": "42.1%",
        "Mean KL": "1.08 nats",
        "Judged on": "512 tokens",
    }
    assert "Top-1 agreement 42.1%, KL 1.1 nats" in texts(at)


@pytest.mark.parametrize("measured", [True, False])
def test_a_trial_that_failed_says_why_and_can_be_tried_again(
    wb: fakes.FakeWorkbench, page: Page, measured: bool
) -> None:
    wb.studies.tried = {"kv-cache-off": result()} if measured else {}
    failure = Failure(kind="oom", message="Memory ran out in the experiment.", hint="Choose a smaller model.")
    later = fakes.CREATED.replace(hour=11)
    wb.add(job(state="failed", progress=None, failure=failure, created=later))
    at = page("handbook").run()
    assert "Memory ran out in the experiment." in at.error[0].value
    assert not at.button(key="try-kv-cache-off").disabled


def test_a_failure_before_the_latest_result_is_history(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.studies.tried = {"kv-cache-off": result()}
    failure = Failure(kind="oom", message="Memory ran out.", hint="")
    wb.add(job(state="failed", progress=None, failure=failure, created=fakes.CREATED.replace(hour=8)))
    assert not page("handbook").run().error


def test_a_busy_device_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.errors["start_experiment"] = Busy("cpu is in use by another app.", "Unload it there.")
    at = page("handbook").run().button(key="try-autocast").click().run()
    assert "cpu is in use by another app." in at.error[0].value


def test_best_practices_are_a_checklist_of_this_recipe(page: Page, wb: fakes.FakeWorkbench) -> None:
    at = page("handbook").run()
    assert not at.exception
    assert at.header[0].value == "Best practices for this Recipe"
    shown = " ".join(each.value for each in at.markdown)
    assert [each.value for each in at.subheader] == [
        "Memory",
        "Speed",
        "GPU utilization",
        "Distribution",
        "Caching",
    ]
    assert "a CPU has none" in shown  # TF32 here, by its conflict
    at.button(key="advice-Mixed precision").click().run()
    assert at.session_state["mcp_recipe"].dtype == "bf16"
    assert "Weights and products in bf16" in " ".join(each.value for each in at.run().markdown)
