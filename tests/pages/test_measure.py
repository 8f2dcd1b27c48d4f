"""The Measure page over a FakeWorkbench: what starts, what runs, what came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core import recordings
from mcp_core.errors import Busy
from mcp_core.evaluation.capacity import Capacity, CapacityPoint
from mcp_core.presets import bundled
from mcp_core.results import Comparable, Failure
from mcp_core.workload import Lengths, Workload, short_chat

Page = Callable[[str], AppTest]


def calls(wb: fakes.FakeWorkbench, method: str) -> list[tuple]:
    return [call[1:] for call in wb.calls if call[0] == method]


def texts(at: AppTest) -> str:
    kinds = (at.markdown, at.caption, at.info, at.warning, at.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def ended_job(**changes: object) -> object:
    return dataclasses.replace(fakes.running_job(), **({"state": "done", "progress": None} | changes))


def test_without_a_worker_start_is_disabled_and_the_bundled_model_one_click_away(
    wb: fakes.FakeWorkbench, page: Page
) -> None:
    at = page("measure").run()
    assert at.button(key="start").disabled
    assert "Load a model first." in texts(at)
    at.button(key="load-bundled").click().run()
    assert calls(wb, "load") == [(bundled(), None, False)]


def test_while_the_model_loads_its_progress_is_shown(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("measure")
    wb.add(fakes.loading_worker())
    at.run()
    assert "reading weights" in at.get("progress")[0].text
    assert at.button(key="start").disabled


def test_a_preset_starts_and_is_followed(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = page("measure").run()
    at.segmented_control(key="workload-name").set_value("burst").run()
    at.button(key="start").click().run()
    worker_id, workload = calls(wb, "start_bench")[0]
    assert (worker_id, workload.name, workload.concurrency) == ("w1", "burst", 32)
    assert "8 of 16 requests" in at.get("progress")[0].text
    assert at.button(key="start").disabled
    assert "This model is being measured." in texts(at)
    at.button(key="cancel-j1").click().run()
    assert calls(wb, "cancel_job") == [("j1",)]
    assert "was cancelled" in texts(at)


def test_own_numbers_reach_the_workload(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = page("measure").run()
    at.segmented_control(key="workload-name").set_value("custom").run()
    at.number_input(key="workload-requests").set_value(5)
    at.number_input(key="workload-concurrency").set_value(2)
    at.number_input(key="workload-warmup_requests").set_value(0)
    at.number_input(key="workload-seed").set_value(7)
    at.number_input(key="workload-prompt-min").set_value(10)
    at.number_input(key="workload-prompt-max").set_value(20)
    at.number_input(key="workload-output-min").set_value(4)
    at.number_input(key="workload-output-max").set_value(8).run()
    assert "About 75 prompt and 30 reply tokens in all" in texts(at)
    at.button(key="start").click().run()
    assert calls(wb, "start_bench")[0][1] == Workload(
        requests=5,
        concurrency=2,
        warmup_requests=0,
        seed=7,
        prompt_tokens=Lengths(min=10, max=20),
        output_tokens=Lengths(min=4, max=8),
    )


def test_lengths_the_wrong_way_round_are_named(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = page("measure").run()
    at.segmented_control(key="workload-name").set_value("custom").run()
    at.number_input(key="workload-prompt-min").set_value(99).run()
    assert "prompt_tokens: min 99 is larger than max 64" in texts(at)
    assert not [button for button in at.button if button.key == "start"]


def test_the_time_comes_from_the_last_run_of_the_same_recipe(wb: fakes.FakeWorkbench, page: Page) -> None:
    other = bundled().replace({"dtype": "bf16"})
    wb.add(fakes.ready_worker(), fakes.ok_run("other", recipe=other))
    assert "how long is not known yet" in texts(page("measure").run())
    wb.add(fakes.ok_run("same"))  # (16 + 2) x 32 tokens at 29.9 tok/s
    assert "about 19 s at the last measured speed" in texts(page("measure").run())


def test_the_result_says_percentiles_or_too_few(wb: fakes.FakeWorkbench, page: Page) -> None:
    run = fakes.ok_run(comparable=Comparable(ok=False, reasons=("load from other programs was 1.7",)))
    wb.add(fakes.ready_worker(), run, ended_job(run=run))
    at = page("measure").run()
    assert not at.exception
    assert "29.9 tok/s with 1 user: the first token after 84.2 ms, then one every 31.5 ms" in texts(at)
    assert "16 requests completed, 0 failed, 0 cancelled" in texts(at)
    assert "baseline before loading 420 MB" in texts(at)
    ttft = at.table[0].value.iloc[0]
    assert (ttft["p50"], ttft["p95"], ttft["n"]) == ("84.2 ms", "too few", "16")
    assert "Load from other programs was 1.7" in at.warning[0].value


def test_a_smoke_test_says_so(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(), ended_job(run=fakes.ok_run()))
    assert "Smoke test · too few requests" in texts(page("measure").run())


def test_a_failed_measurement_says_cause_and_hint(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(), ended_job(state="failed", run=fakes.failed_run()))
    at = page("measure").run()
    assert "Memory ran out while serving." in at.error[0].value
    assert at.button(key="start").disabled is False


def test_a_job_without_a_run_says_why(wb: fakes.FakeWorkbench, page: Page) -> None:
    failure = Failure(kind="worker", message="The worker died.", hint="Load it again.")
    wb.add(fakes.ready_worker(), ended_job(state="failed", failure=failure))
    assert "The worker died." in page("measure").run().error[0].value


def test_a_queued_measurement_says_what_is_ahead(wb: fakes.FakeWorkbench, page: Page) -> None:
    later = dataclasses.replace(
        fakes.running_job("j2"), state="queued", progress=None, created=fakes.CREATED.replace(hour=10)
    )
    wb.add(fakes.ready_worker(), fakes.running_job(), later)
    assert "Waiting: 1 measurement ahead." in texts(page("measure").run())


def test_the_link_chooses_the_measurement(wb: fakes.FakeWorkbench, page: Page) -> None:
    slow = fakes.ok_run("slow", workload=short_chat().replace({"concurrency": 3}))
    newer = {"created": fakes.CREATED.replace(hour=11)}
    wb.add(fakes.ready_worker(), ended_job(id="old", run=slow), ended_job(id="new", run=fakes.ok_run(), **newer))
    at = page("measure")
    at.query_params["job"] = "old"
    assert "with 3 users" in texts(at.run())


def test_a_busy_worker_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    wb.errors["start_bench"] = Busy("A reply is being written.", "Stop it first.")
    at = page("measure").run().button(key="start").click().run()
    assert "A reply is being written." in at.error[0].value


def test_the_latest_runs_and_the_command_line(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(), fakes.ok_run(), fakes.failed_run())
    at = page("measure").run()
    assert list(at.dataframe[0].value["Status"]) == ["ok", "failed"]
    assert at.code[0].value == "mcp-core bench recipe.json short-chat --out run.json"


def test_a_workload_longer_than_the_context_cannot_be_started(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(max_context=64))
    at = page("measure").run()
    assert at.button(key="start").disabled
    assert "The longest request has 96 tokens; this model's context holds 64." in texts(at)


def test_a_cancelled_measurement_is_no_error(wb: fakes.FakeWorkbench, page: Page) -> None:
    failure = Failure(kind="cancelled", message="The measurement was stopped.", hint="Kept.")
    run = fakes.ok_run(status="cancelled", measurement=None, memory=None, failure=failure)
    wb.add(fakes.ready_worker(), dataclasses.replace(fakes.running_job(), state="cancelled", run=run))
    at = page("measure").run()
    assert not at.error
    assert "The measurement was cancelled." in texts(at)


def own(at: AppTest) -> AppTest:
    return at.segmented_control(key="workload-name").set_value("custom").run()


def test_arrivals_lengths_chats_and_prefixes_reach_the_workload(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(max_context=8192))
    at = own(page("measure").run())
    at.selectbox(key="workload-arrivals").set_value("poisson")
    at.selectbox(key="workload-ends").set_value("time")
    at.selectbox(key="workload-prompt-kind").set_value("lognormal")
    at.selectbox(key="workload-output-kind").set_value("values")
    at.toggle(key="workload-chats").set_value(True)
    at.toggle(key="workload-prefix").set_value(True).run()
    at.number_input(key="workload-rate_s").set_value(2.5)
    at.number_input(key="workload-duration_s").set_value(30.0)
    at.number_input(key="workload-prompt-max").set_value(400).run()
    at.number_input(key="workload-prompt-median").set_value(100)
    at.text_input(key="workload-output-values").set_value("8, 16,300")
    at.number_input(key="workload-think_s").set_value(1.5)
    at.slider(key="workload-prefix-hit_rate").set_value(80).run()
    assert not at.exception
    assert "30 s, and until what then runs has ended" in texts(at)
    at.button(key="start").click().run()
    workload = calls(wb, "start_bench")[0][1]
    assert (workload.arrivals.kind, workload.arrivals.rate_s, workload.duration_s) == ("poisson", 2.5, 30)
    prompt = workload.prompt_tokens
    assert (prompt.kind, prompt.min, prompt.median, prompt.max) == ("lognormal", 64, 100, 400)
    assert workload.output_tokens.values == (8, 16, 300)
    assert (workload.chats.think_s, workload.chats.turns.max) == (1.5, 5)
    assert (workload.prefix.hit_rate, workload.prefix.tokens) == (0.8, 256)


def test_a_recording_can_be_replayed_once_it_is_there(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = own(page("measure").run())
    at.selectbox(key="workload-source").set_value("recording").run()
    assert "No recording is chosen yet." in texts(at)
    kept = recordings.add("trace.csv", b"at_s,prompt_tokens,output_tokens\n0,5,2\n3,7,3\n")
    at = own(page("measure").run())
    at.selectbox(key="workload-source").set_value("recording").run()
    at.selectbox(key="workload-arrivals").set_value("replay").run()
    assert "trace.csv, 2 in 3 s" in at.selectbox(key="workload-which-recording").options
    at.button(key="start").click().run()
    workload = calls(wb, "start_bench")[0][1]
    assert (workload.prompts.sha256, workload.arrivals.kind) == (kept.sha256, "replay")
    assert not [button for button in at.button if button.key == "start-capacity" and not button.disabled]


def test_a_wrong_list_of_lengths_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = own(page("measure").run())
    at.selectbox(key="workload-prompt-kind").set_value("values").run()
    at.text_input(key="workload-prompt-values").set_value("8, eight").run()
    assert "prompt_tokens" in texts(at)


def test_a_capacity_is_searched_by_published_or_own_limits(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(max_context=8192))
    at = page("measure").run()
    at.segmented_control(key="workload-name").set_value("chat").run()
    assert "MLPerf Inference, llama3_1-8b-interactive" in texts(at)
    at.segmented_control(key="capacity-limits-chat").set_value("own limits").run()
    at.number_input(key="capacity-tpot_ms").set_value(40.0)
    at.number_input(key="capacity-minutes").set_value(5).run()
    assert "at least 210 requests" in texts(at)
    at.button(key="start-capacity").click().run()
    worker_id, workload, goal, budget_s = calls(wb, "start_capacity")[0]
    assert (worker_id, workload.name, budget_s) == ("w1", "chat", 300)
    assert [(each.metric, each.statistic, each.limit_ms) for each in goal.slo.limits()] == [
        ("ttft_ms", "p95", 500),
        ("tpot_ms", "p95", 40),
    ]
    assert "This model is being measured." in texts(at)


LIMITS = ("p95 TTFT ≤ 500 ms", "failed requests ≤ 1 %")


def test_what_a_search_found_is_shown_point_by_point(wb: fakes.FakeWorkbench, page: Page) -> None:
    points = (
        CapacityPoint(load=8, run_id="r8", meets=True, attainment=0.995, goodput_s=3.2),
        CapacityPoint(load=16, run_id="r16", meets=False, attainment=0.4, broken=("p95 TTFT 812 > 500 ms",)),
    )
    found = Capacity(
        kind="concurrency", points=points, best=8, broken_at=16, ended="budget", seconds=61, limits=LIMITS
    )
    result = found.model_dump(mode="json")
    wb.add(fakes.ready_worker(), ended_job(verb="capacity", run=None, result=result))
    at = page("measure").run()
    assert "8 users meet every limit, 16 do not." in texts(at)
    assert "The time was up" in texts(at)
    table = at.dataframe[0].value
    assert list(table["broken"]) == ["–", "p95 TTFT 812 > 500 ms"]
    assert list(table["meets"]) == ["✓ yes", "✕ no"]
    assert list(table["attainment"]) == pytest.approx([99.5, 40.0])
    assert list(table["run"]) == ["runs?run=r8", "runs?run=r16"]
    assert "Every limit: p95 TTFT ≤ 500 ms" in texts(at)
