"""The Playground's switches: live ones apply at once, others load; what each changed for this chat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.errors import Busy, DoesNotFit
from mcp_core.presets import bundled
from mcp_core.recipe import Recipe
from mcp_core.results import Memory
from mcp_core.views import Message, ReplyStats
from pages._ui import load_panel
from pages._ui.chat_effects import headline, reply_rows, switch_words

Page = Callable[[str], AppTest]
GB = 10**9


def calls(wb: fakes.FakeWorkbench, method: str) -> list[tuple]:
    return [call[1:] for call in wb.calls if call[0] == method]


def texts(at: AppTest) -> str:
    kinds = (at.text, at.markdown, at.caption, at.info, at.warning, at.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def widget(elements, name: str):
    """The one whose key begins so: the rest of a switch's key follows the worker."""
    return next(element for element in elements if element.key and element.key.startswith(f"switch-{name}-"))


def opened(page: Page, wb: fakes.FakeWorkbench, recipe: Recipe | None = None) -> AppTest:
    wb.add(fakes.ready_worker(recipe=recipe))
    return page("playground").run()


def reply(recipe: Recipe, **stats: object) -> Message:
    known = {"ttft_ms": 2100.0, "tpot_ms": 30.0, "e2e_ms": 3000.0, "prompt_tokens": 840, "output_tokens": 20}
    return Message("assistant", "…", ReplyStats(**(known | {"output_tok_s": 20.0} | stats)), "stop", None, recipe)


PLAIN = bundled()
CACHED = PLAIN.replace({"batching.mode": "continuous", "prefix_cache": True})


def test_batching_changes_at_once(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = opened(page, wb)
    widget(at.segmented_control, "batching").set_value("continuous").run()
    assert calls(wb, "apply_live") == [("w1", PLAIN.replace({"batching.mode": "continuous"}))]
    assert widget(at.segmented_control, "batching").value == "continuous"
    at.run()
    assert len(calls(wb, "apply_live")) == 1


def test_nothing_is_switched_while_it_is_measured(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.running_job())
    at = opened(page, wb)
    assert widget(at.segmented_control, "batching").disabled
    assert widget(at.toggle, "prefix").disabled
    assert any("This model is being measured" in each.value for each in at.caption)


def test_the_prefix_cache_changes_at_once(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = opened(page, wb)
    widget(at.toggle, "prefix").set_value(True).run()
    assert calls(wb, "apply_live") == [("w1", PLAIN.replace({"prefix_cache": True}))]


def test_the_recipe_page_does_not_offer_to_undo_what_was_switched(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = opened(page, wb)
    widget(at.segmented_control, "batching").set_value("continuous").run()
    widget(at.toggle, "prefix").set_value(True).run()
    assert at.session_state["mcp_recipe"] == CACHED


def test_a_change_that_is_refused_is_said_once_and_the_switch_goes_back(
    wb: fakes.FakeWorkbench, page: Page
) -> None:
    at = opened(page, wb)
    wb.errors["apply_live"] = Busy("cpu is being measured: short-chat.", "Wait, or cancel the job.")
    widget(at.segmented_control, "batching").set_value("static").run()
    assert "cpu is being measured" in at.error[0].value
    assert widget(at.segmented_control, "batching").value == "off"
    at.run()
    assert not at.error
    assert len(calls(wb, "apply_live")) == 1


def test_what_this_recipe_cannot_do_is_not_offered(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = opened(page, wb, PLAIN.replace({"kv.kind": "static"}))
    modes = widget(at.segmented_control, "batching")
    assert list(modes.options) == ["Off"]
    assert "holds one sequence" in modes.help
    assert widget(at.toggle, "prefix").disabled
    at = opened(page, wb, CACHED)
    assert list(widget(at.segmented_control, "batching").options) == ["Off", "Continuous"]  # static shares no pages


def test_while_a_reply_is_written_the_switches_wait(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(), fakes.conversation(streaming=True))
    at = page("playground")
    at.query_params["chat"] = "c1"
    at.run()
    assert widget(at.segmented_control, "batching").disabled
    assert widget(at.toggle, "prefix").disabled


def test_another_cache_needs_a_reload_by_one_button(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = opened(page, wb)
    assert not [button for button in at.button if button.key == "switches-load"]
    widget(at.selectbox, "kv.kind").set_value("static").run()
    assert "KV cache: `dynamic` → `static`" in texts(at)
    assert "stays loaded" in texts(at)
    at.button(key="switches-load").click().run()
    assert calls(wb, "load") == [(PLAIN.replace({"kv.kind": "static"}), None, False)]
    assert not calls(wb, "unload")
    assert at.session_state["mcp_recipe"].kv.kind == "static"


def test_where_both_do_not_fit_the_present_one_goes_first(
    wb: fakes.FakeWorkbench, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(recipe: Recipe, **_: object) -> str:
        if "w1" in wb.worker_views:
            raise DoesNotFit("It needs 20 GB.", "Unload another.")
        return type(wb).load(wb, recipe)

    at = opened(page, wb)
    wb.footprint_value = fakes.footprint(fits=False)
    monkeypatch.setattr(wb, "load", load, raising=False)
    widget(at.selectbox, "kv.kind").set_value("static").run()
    assert "is unloaded first" in texts(at)
    at.button(key="switches-load").click().run()
    assert calls(wb, "unload") == [("w1",)]
    assert calls(wb, "load") == [(PLAIN.replace({"kv.kind": "static"}), None, False)]


@pytest.mark.parametrize(("peak_gb", "fits"), [(40, True), (20, False)])
def test_on_a_gpu_all_that_a_worker_reserved_is_given_back(peak_gb: int, fits: bool) -> None:
    """Its keys and values too: vLLM holds nearly all of a device beside 13 GB of weights."""
    memory = Memory(weights_bytes=13 * GB, peak_bytes=peak_gb * GB)
    worker = dataclasses.replace(fakes.ready_worker(), device="cuda:0", memory=memory)
    needs = {"peak_bytes": 30 * GB, "load_peak_bytes": 30 * GB, "free_bytes": 2 * GB}
    asked = fakes.footprint(fits=False, device="cuda:0", **needs)
    assert load_panel._fits_after_unload(worker, asked) == fits


def test_switches_in_words() -> None:
    assert switch_words(PLAIN) == "batching off"
    everything = CACHED.replace({"compile": "graphs", "speculation": "prompt-lookup"})
    assert switch_words(everything) == "batching continuous · prefix cache · recorded steps · prompt-lookup guesses"
    assert switch_words(PLAIN.replace({"kv.kind": "static"})) == "batching off · static KV cache"


def test_the_headline_says_what_the_switches_did_for_the_same_prompt() -> None:
    now = reply(CACHED, ttft_ms=180.0, cached_tokens=812, tpot_ms=31.0)
    messages = (Message("user", "?"), dataclasses.replace(now, replaced=(reply(PLAIN),)))
    assert headline(messages) == (
        "**batching continuous · prefix cache**: 812 of 840 prompt tokens known; TTFT 180 ms, before 2,100 ms; "
        "TPOT 31.0 ms, before 30.0 ms (batching off). Same prompt."
    )
    assert [row["Known"] for row in reply_rows(messages)] == [None, 812]


def test_the_headline_names_the_lengths_of_different_prompts() -> None:
    guessing = PLAIN.replace({"speculation": "prompt-lookup"})
    first = reply(PLAIN, prompt_tokens=600)
    second = reply(guessing, tpot_ms=15.0, drafted_tokens=30, accepted_tokens=18)
    words = headline((Message("user", "?"), first, Message("user", "?"), second))
    assert words is not None
    assert "18 of 30 guessed tokens kept" in words
    assert "Prompts of 840 and 600 tokens" in words
    assert reply_rows((first, second))[1]["Guesses kept %"] == pytest.approx(60)


def test_without_a_change_there_is_nothing_to_say() -> None:
    assert headline(()) is None
    assert headline((Message("user", "?"), reply(PLAIN), Message("user", "?"), reply(PLAIN))) is None
    assert reply_rows((Message("assistant", "stopped at once"),)) == []


def test_the_page_shows_it_under_the_chat(wb: fakes.FakeWorkbench, page: Page) -> None:
    now = dataclasses.replace(reply(CACHED, cached_tokens=812), replaced=(reply(PLAIN),))
    view = dataclasses.replace(fakes.conversation(), messages=(Message("user", "?"), now))
    wb.add(fakes.ready_worker(recipe=CACHED), view)
    at = page("playground")
    at.query_params["chat"] = "c1"
    at.run()
    assert "812 of 840 prompt tokens known" in at.info[0].value
    assert "tokens · 812 of 840 prompt tokens known · ended by itself" in texts(at)
    assert list(at.dataframe[0].value["Served by"]) == ["batching off", "batching continuous · prefix cache"]
