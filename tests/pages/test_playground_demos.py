"""The Playground's race and many users: started, followed, shown; what cannot be is said."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.crowd import CrowdPlan, CrowdRequest
from mcp_core.errors import Busy
from mcp_core.generation import EngineStats, Sampling
from mcp_core.presets import bundled
from mcp_core.results import Failure
from pages._ui.crowd_chart import crowd_chart, parts_ms
from pages._ui.crowd_panel import comparison
from pages._ui.race_panel import verdict

Page = Callable[[str], AppTest]
FIRST = Sampling(temperature=0.0, top_p=0.9)
INT8 = bundled().replace({"quantization.scheme": "torchao-int8-weight-only"})


def calls(wb: fakes.FakeWorkbench, method: str) -> list[tuple]:
    return [call[1:] for call in wb.calls if call[0] == method]


def texts(at: AppTest) -> str:
    kinds = (at.text, at.markdown, at.caption, at.info, at.warning, at.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def opened(page: Page, mode: str, **state: object) -> AppTest:
    at = page("playground")
    for name, value in state.items():
        at.session_state[name] = value
    at.run()
    return at.segmented_control(key="mode").set_value(mode).run()


def two(wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker("w1"), fakes.ready_worker("w2", INT8))


@pytest.mark.parametrize("measured", ["w1", "w2"])
def test_no_race_while_one_of_them_is_measured(wb: fakes.FakeWorkbench, page: Page, measured: str) -> None:
    two(wb)
    wb.add(dataclasses.replace(fakes.running_job(), worker_id=measured))
    at = opened(page, "Race", mcp_worker_id="w1")
    assert at.button(key="race-start").disabled
    assert "This model is being measured. Wait for short-chat" in texts(at)


def test_two_loaded_models_race_on_one_prompt(wb: fakes.FakeWorkbench, page: Page) -> None:
    two(wb)
    at = opened(page, "Race", mcp_worker_id="w1")
    at.text_area(key="race-prompt").set_value("Why is the sky blue?")
    at.number_input(key="race-max-tokens").set_value(32).run()
    at.button(key="race-start").click().run()
    assert calls(wb, "start_race") == [(("w1", "w2"), "Why is the sky blue?", FIRST, 32, False)]
    assert "A is measured (5 tokens so far)" in at.get("progress")[0].text
    assert "blue." not in texts(at)  # nothing is read before both were measured
    at.button(key="race-stop").click().run()
    assert calls(wb, "stop_race") == [("r1",)]


def shown(page: Page, wb: fakes.FakeWorkbench, ago_s: float, **changes: object) -> AppTest:
    two(wb)
    wb.demos.races["r1"] = dataclasses.replace(fakes.race(), **changes)
    state = {"mcp_race_ids": ("r1",), "mcp_replay_began_s": time.time() - ago_s, "mcp_worker_id": "w1"}
    return opened(page, "Race", **state)


def test_the_end_of_a_race_with_speed_and_fidelity_above(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.studies.stored = (fakes.fidelity(INT8, kl=0.011, top1=0.94),)
    at = shown(page, wb, ago_s=60)
    assert "B wrote 50.0 tok/s, A 25.0 tok/s: 2.0 times as fast." in texts(at)
    assert texts(at).count("The sky is blue.") == 2
    assert "Fidelity: KL 0.011 nats, same first choice 94%" in texts(at)
    assert "Fidelity: not measured" in texts(at)  # of A; alone, a page's link is its words
    assert "A race writes no Run" in " ".join(caption.value.replace("\n", " ") for caption in at.caption)
    at.button(key="race-replay").click().run()
    assert texts(at).count("The sky is blue.") < 2


def test_in_the_middle_each_has_said_what_it_had_by_then(
    wb: fakes.FakeWorkbench, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pages._ui.race_panel._elapsed_ms", lambda: 185.0)
    at = shown(page, wb, ago_s=0)
    said = [text.value for text in at.text]
    assert said == ["The sky is ▌", "▌"]  # A: at 100, 140 and 180 ms; B begins at 200 ms


def test_together_is_labelled(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = shown(page, wb, ago_s=60, together=True)
    assert "Sharing the device" in at.warning[0].value
    at.toggle(key="race-together").set_value(True).run()
    at.button(key="race-start").click().run()
    assert calls(wb, "start_race")[0][-1] is True


def test_with_one_model_another_is_loaded_beside_it(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker("first"))
    at = opened(page, "Race")
    at.selectbox(key="race-scheme").set_value("torchao-int8-weight-only").run()
    at.button(key="race-load").click().run()
    assert calls(wb, "load") == [(INT8, None, False)]
    assert at.session_state["mcp_worker_id"] == "first"
    assert "Loading B" in texts(at)


def test_what_does_not_fit_beside_is_measured_in_its_place(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker("w2", INT8))
    alone = fakes.race()
    wb.demos.races["r1"] = dataclasses.replace(alone, lanes=alone.lanes[:1])
    at = opened(page, "Race", mcp_race_ids=("r1",), mcp_replay_began_s=1.0)
    assert "load the other Recipe and measure it" in texts(at)
    at.text_area(key="race-prompt").set_value(alone.prompt).run()
    at.button(key="race-start").click().run()
    assert calls(wb, "start_race") == [(("w2",), alone.prompt, FIRST, 128, False)]
    assert at.session_state["mcp_race_ids"] == ("r1", "r2")


def test_a_race_that_cannot_start_says_why(wb: fakes.FakeWorkbench, page: Page) -> None:
    two(wb)
    at = opened(page, "Race")
    wb.errors["start_race"] = Busy("SmolLM2 is at work on cpu.", "Wait until it is idle, or stop it.")
    at.button(key="race-start").click().run()
    assert "is at work on cpu" in at.error[0].value


def test_a_lane_that_failed_says_why(wb: fakes.FakeWorkbench, page: Page) -> None:
    lanes = fakes.race().lanes
    failure = Failure(kind="oom", message="Memory ran out.", hint="Smaller.")
    broken = dataclasses.replace(lanes[1], state="failed", at_ms=(), pieces=(), stats=None, failure=failure)
    at = shown(page, wb, ago_s=60, lanes=(lanes[0], broken))
    assert "Memory ran out." in at.error[0].value
    assert verdict((lanes[0], broken)) is None


def test_a_lane_that_was_stopped_says_so_and_is_not_compared(wb: fakes.FakeWorkbench, page: Page) -> None:
    first, second = fakes.race().lanes
    stopped = dataclasses.replace(second, state="cancelled", finish_reason="cancelled")
    at = shown(page, wb, ago_s=60, lanes=(first, stopped))
    assert "Stopped before its end." in texts(at)
    assert verdict((first, second)) is not None
    assert verdict((first, stopped)) is None


def test_speeds_within_five_percent_are_about_equal() -> None:
    first, _ = fakes.race().lanes
    near = dataclasses.replace(first, stats=dataclasses.replace(first.stats, output_tok_s=25.9))
    assert verdict((first, near)) == "About equal: 25.0 tok/s and 25.9 tok/s."


def test_many_users_are_sent_in_every_mode_by_one_click(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = opened(page, "Many users")
    assert "writes no Run" in texts(at)
    at.select_slider(key="crowd-users").set_value(8)
    at.selectbox(key="crowd-reply").set_value(32).run()
    at.button(key="crowd-start").click().run()
    plan = CrowdPlan(users=8, prompt_tokens=128, output_tokens=32, modes=("off", "static", "continuous"))
    assert calls(wb, "start_crowd") == [("w1", plan)]
    assert at.button(key="crowd-start").disabled
    assert at.button(key="crowd-stop").label == "Cancel"  # as every other job
    at.button(key="crowd-stop").click().run()
    assert calls(wb, "cancel_job") == [("crowd-1",)]


def test_how_long_a_crowd_takes_is_said_before_the_press(wb: fakes.FakeWorkbench, page: Page) -> None:
    """16 users and a warm-up, each 128 prompt tokens at 1 ms and 64 output tokens at 30 ms, in three modes."""
    worker = fakes.ready_worker()
    wb.add(worker)
    assert "is known once this worker has answered" in texts(opened(page, "Many users"))
    counted = EngineStats(
        finished_total=4, decode_steps_total=400, decode_s_total=12.0, prompt_tokens_total=500, prefill_s_total=0.5
    )
    wb.engine_stats["w1"] = counted
    at = opened(page, "Many users")
    assert "At most about 2 min for 3 modes: 16 users one after the other take about 35 s" in texts(at)
    assert "TPOT of 30.0 ms since it was loaded" in texts(at)
    at.select_slider(key="crowd-users").set_value(4).run()
    assert "At most about 31 s for 3 modes: 4 users" in texts(at)
    wb.samples = fakes.samples(worker=worker)
    assert "TPOT of 30.0 ms in the last minute" in texts(at.run())


def test_a_crowd_before_the_first_reply_is_timed_by_the_last_run(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(), fakes.ok_run(recipe=fakes.ready_worker().recipe))
    assert "TPOT of 31.5 ms in its last Run" in texts(opened(page, "Many users"))


def test_three_modes_beside_each_other(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(), fakes.study_job("crowd", state="done", progress=None, worker_id="w1"))
    wb.demos.crowds["crowd-1"] = fakes.crowd()
    at = opened(page, "Many users")
    assert "Continuous served 4 users in 2.6 s, off in 8.0 s: 3.1 times the throughput." in texts(at)
    assert len(at.get("echarts_chart")) == 3
    assert "All replies after **8.0 s**" in texts(at)


def test_a_crowd_is_followed(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(), fakes.study_job("crowd", worker_id="w1"))
    crowd = fakes.crowd(ended=False)
    wb.demos.crowds["crowd-1"] = crowd.model_copy(
        update={"runs": crowd.runs[:2]}, deep=True
    )  # the third has not begun
    at = opened(page, "Many users")
    assert "Not yet." in texts(at)
    assert len(at.get("echarts_chart")) == 2


def test_another_workers_crowd_is_not_shown(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(), fakes.study_job("crowd", state="done", progress=None, worker_id="w7"))
    wb.demos.crowds["crowd-1"] = fakes.crowd()
    assert not opened(page, "Many users").get("echarts_chart")


def test_modes_that_the_recipe_cannot_be_in_are_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(recipe=bundled().replace({"kv.kind": "static"})))
    at = opened(page, "Many users")
    assert "**Continuous**: static holds one sequence" in texts(at)
    at.button(key="crowd-start").click().run()
    assert calls(wb, "start_crowd")[0][1].modes == ("off",)


def test_a_comparison_needs_two_whole_modes() -> None:
    crowd = fakes.crowd()
    assert comparison(crowd.model_copy(update={"runs": crowd.runs[:1]})) is None
    short = crowd.runs[1].model_copy(update={"completed": 3})
    assert comparison(crowd.model_copy(update={"runs": (crowd.runs[0], short)})) is None
    same = crowd.runs[0].model_copy(update={"mode": "static"})
    assert "No difference" in str(comparison(crowd.model_copy(update={"runs": (crowd.runs[0], same)})))


@pytest.mark.parametrize(
    ("request_", "now_ms", "parts"),
    [
        # queue, prefill, waiting, decode, broken off
        ({"state": "waiting"}, 500, (0, 0, 490, 0, 0)),
        ({"state": "decoding", "first_ms": 110, "last_ms": 300}, 500, (0, 0, 100, 390, 0)),
        (
            {"state": "ok", "first_ms": 110, "last_ms": 300, "queue_ms": 70, "prefill_ms": 25},
            500,
            (70, 30, 0, 190, 0),
        ),
        ({"state": "ok", "first_ms": 110, "last_ms": 300}, 500, (0, 0, 100, 190, 0)),  # a server that tells nothing
        ({"state": "failed", "first_ms": 110, "last_ms": 300}, 500, (0, 0, 100, 0, 190)),
        ({"state": "cancelled"}, 500, (0, 0, 0, 0, 490)),
        # the worker's clock may count the queue a little longer than the whole wait was here
        (
            {"state": "ok", "first_ms": 110, "last_ms": 110, "queue_ms": 101, "prefill_ms": 0},
            500,
            (100, 0, 0, 0, 0),
        ),
    ],
)
def test_the_parts_of_a_bar(request_: dict[str, object], now_ms: float, parts: tuple[float, ...]) -> None:
    assert parts_ms(CrowdRequest(index=0, sent_ms=10, **request_), now_ms) == pytest.approx(parts)


def test_every_user_has_a_row_from_the_beginning_and_modes_share_their_axis() -> None:
    run = fakes.crowd(ended=False, modes=("static",)).runs[0]
    option = crowd_chart(run, users=6, end_s=12.34)
    assert option["xAxis"]["max"] == 12.3
    assert len(option["yAxis"]["data"]) == 6
    assert [series["name"] for series in option["series"]] == ["sent", "waiting", "decode"]
    assert all(len(series["data"]) == 6 for series in option["series"])
