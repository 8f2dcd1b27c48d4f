"""home: the answer, or the next step, in each state of the worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.errors import DoesNotFit, ModelNotFound, StoreError
from mcp_core.presets import bundled

OpenPage = Callable[[str], AppTest]


def _text(at: AppTest) -> str:
    return "\n".join(element.value for element in (*at.title, *at.header, *at.markdown, *at.caption))


def test_empty_offers_the_bundled_model_with_what_it_needs(page: OpenPage) -> None:
    at = page("home").run()
    assert not at.exception
    assert at.title[0].value == "No model is loaded yet"
    assert "Needs 1.20 GB of the 11.0 GB of memory that are free." in _text(at)
    assert "538 MB are written to disk once" in _text(at)
    assert [button.label for button in at.button] == ["Load the bundled model"]
    assert "oading took" not in _text(at)
    assert "minute" not in _text(at)


def test_one_click_loads_the_bundled_model_and_shows_progress(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    at = page("home").run()
    at.button(key="load-bundled").click().run()
    assert ("load", bundled(), None, False) in wb.calls
    assert at.title[0].value == "Loading SmolLM2-135M-Instruct"
    at.button(key="cancel-load").click().run()
    assert wb.calls[-1][0] != "load"
    assert wb.workers() == ()


def test_loading_took_this_long_last_time(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ok_run())
    assert "Last time loading took 9.4 s." in _text(page("home").run())


def test_a_refused_load_shows_cause_and_hint(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.errors["load"] = DoesNotFit("It needs 20 GB of 11 GB.", "Choose a 4-bit scheme.")
    at = page("home").run()
    at.button(key="load-bundled").click().run()
    assert not at.exception
    assert "It needs 20 GB of 11 GB" in at.error[0].value
    assert "Choose a 4\\-bit scheme" in at.error[0].value or "Choose a 4-bit scheme" in at.error[0].value


def test_a_model_that_is_not_installed_says_so(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.errors["footprint"] = ModelNotFound("The bundled model is not installed.", "Run make install.")
    assert "The bundled model is not installed. Run make install." in _text(page("home").run())


def test_ready_says_how_it_is_served_and_where_to_go(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker())
    at = page("home").run()
    assert not at.exception
    assert at.title[0].value == "SmolLM2-135M-Instruct is ready"
    assert "fp32 · unquantized · on cpu · weights 538 MB · context 2,048 tokens · loaded in 9.4 s" in _text(at)
    assert "http://127.0.0.1:40001/v1" in _text(at)
    assert [button.label for button in at.button] == ["Chat with it", "Measure it"]


def test_random_weights_are_said(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ready_worker(random_weights=True))
    assert "random weights" in page("home").run().info[0].value


def test_the_last_run_is_a_headline(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ok_run(), fakes.failed_run())
    at = page("home").run()
    assert {metric.label: metric.value for metric in at.metric} == {
        "TTFT p50": "84.2 ms",
        "TPOT p50": "31.5 ms",
        "Throughput": "29.9 tok/s",
        "Peak memory": "630 MB",
    }
    assert all(metric.help for metric in at.metric)
    assert "smoke test · too few requests" in _text(at)


def test_a_last_run_that_failed_says_why(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.failed_run())
    at = page("home").run()
    assert "✕ failed: Memory ran out while serving." in _text(at)
    assert len(at.metric) == 0


@pytest.mark.parametrize(("state", "words"), [("failed", "could not be loaded"), ("died", "stopped working")])
def test_an_ended_worker_shows_why_and_can_be_dismissed(
    page: OpenPage, wb: fakes.FakeWorkbench, state: str, words: str
) -> None:
    wb.add(fakes.failed_worker(state=state))
    at = page("home").run()
    assert at.title[0].value == f"SmolLM2-135M-Instruct {words}"
    assert "Memory ran out while loading." in at.error[0].value
    at.button(key="dismiss").click().run()
    assert wb.calls == [("dismiss", "w1"), *(call for call in wb.calls[1:])]
    assert at.title[0].value == "No model is loaded yet"


def test_try_again_loads_the_same_recipe(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.failed_worker())
    page("home").run().button(key="retry").click().run()
    assert [call[0] for call in wb.calls if call[0] in ("dismiss", "load")] == ["dismiss", "load"]
    assert next(iter(wb.worker_views.values())).recipe == bundled()


def test_a_store_that_cannot_be_read_does_not_hide_the_page(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    def broken(**_: Any) -> Any:
        raise StoreError("The results store cannot be read.", "Free some disk.")

    wb.runs = broken  # type: ignore[method-assign]
    at = page("home").run()
    assert not at.exception
    assert at.title[0].value == "No model is loaded yet"


def test_the_machine_in_one_line_and_another_app_is_told(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.other = ("MCP (open, process 77)",)
    at = page("home").run()
    assert "Example CPU · 8 cores · 16.0 GB memory, 11.0 GB free · no NVIDIA device" in _text(at)
    assert "process 77" in at.warning[0].value
    assert "torch: 2.13.0" in _text(at)


def test_a_measurement_of_another_machine_says_on_what(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    wb.add(fakes.ok_run())
    assert " · on Example CPU" not in _text(page("home").run())
    gpu = {
        "hardware": fakes.hardware(gpu=True),
        "recipe": bundled().replace({"device": "cuda:0"}),
        "effective": None,
    }
    wb.run_values[:] = [fakes.ok_run().model_copy(update=gpu)]
    assert " · on NVIDIA H100 80GB HBM3 · " in _text(page("home").run())
