"""The Playground page over a FakeWorkbench: chat, its figures, stop, edit, export; the batch box."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.errors import RequestRejected
from mcp_core.generation import Sampling
from mcp_core.presets import bundled
from mcp_core.results import Failure
from mcp_core.views import BatchItemView, ConversationView, Message

Page = Callable[[str], AppTest]
FIRST = Sampling(temperature=0.0, top_p=0.9)  # what the settings show at first


def calls(wb: fakes.FakeWorkbench, method: str) -> list[tuple]:
    return [call[1:] for call in wb.calls if call[0] == method]


def texts(at: AppTest) -> str:
    kinds = (at.text, at.markdown, at.caption, at.info, at.warning, at.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def chat(page: Page, wb: fakes.FakeWorkbench, view: ConversationView | None = None) -> AppTest:
    wb.add(fakes.ready_worker(), view or fakes.conversation())
    at = page("playground")
    at.query_params["chat"] = "c1"
    return at.run()


def reply(**changes: object) -> ConversationView:
    view = fakes.conversation()
    return dataclasses.replace(view, messages=(view.messages[0], dataclasses.replace(view.messages[1], **changes)))


def test_without_a_worker_the_bundled_model_is_one_click_away(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("playground").run()
    assert "No model is loaded." in texts(at)
    assert not at.chat_input
    at.button(key="load-bundled").click().run()
    assert calls(wb, "load") == [(bundled(), None, False)]


def test_a_failed_worker_says_why(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.failed_worker())
    assert "Memory ran out while loading." in page("playground").run().error[0].value


def test_a_first_message_opens_a_conversation_and_puts_it_in_the_link(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = page("playground").run()
    at.text_area(key="system-new").set_value("Be brief.").run()
    at.chat_input(key="message").set_value("What is the capital of France?").run()
    assert calls(wb, "new_conversation") == [("w1", "Be brief.")]
    assert calls(wb, "send") == [("c1", "What is the capital of France?", FIRST, 256)]
    assert at.query_params["chat"] == "c1"
    assert "Paris." in texts(at)
    assert "TTFT 82.0 ms · TPOT 31.0 ms · 24.2 tok/s · 8 tokens · ended by itself" in texts(at)


def test_settings_reach_the_next_message(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = page("playground").run()
    at.slider(key="temperature").set_value(0.5).run()
    at.number_input(key="top-p").set_value(0.9)
    at.number_input(key="min-p").set_value(0.05)
    at.number_input(key="top-k").set_value(40)
    at.number_input(key="repetition-penalty").set_value(1.1)
    at.number_input(key="seed").set_value(7)
    at.number_input(key="max-tokens").set_value(12).run()
    at.chat_input(key="message").set_value("Hello").run()
    sampling = Sampling(temperature=0.5, top_p=0.9, min_p=0.05, top_k=40, repetition_penalty=1.1, seed=7)
    assert calls(wb, "send") == [("c1", "Hello", sampling, 12)]


def test_while_a_reply_streams_it_can_be_stopped(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb, fakes.conversation(streaming=True))
    assert "The capital of France is Paris. ▌" in texts(at)
    assert "8 tokens so far" in texts(at)
    assert at.chat_input(key="message").disabled
    assert not [button for button in at.button if button.key == "regenerate"]
    at.button(key="stop-reply").click().run()
    assert calls(wb, "stop") == [("c1",)]
    assert not at.chat_input(key="message").disabled


def test_settings_change_while_a_reply_streams(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb, fakes.conversation(streaming=True))
    at.slider(key="temperature").set_value(0.0).run()
    assert not calls(wb, "stop")
    assert at.button(key="stop-reply")


@pytest.mark.parametrize(
    ("reason", "words"),
    [("stop", "ended by itself"), ("length", "reached the token limit"), ("cancelled", "stopped by you")],
)
def test_how_a_reply_ended_is_said_in_words(wb: fakes.FakeWorkbench, page: Page, reason: str, words: str) -> None:
    assert words in texts(chat(page, wb, reply(finish_reason=reason)))


def test_a_reply_that_broke_off_keeps_its_text_and_says_what_to_do(wb: fakes.FakeWorkbench, page: Page) -> None:
    failure = Failure(kind="worker", message="The worker died.", hint="Load it again.")
    at = chat(page, wb, reply(content="The capi", stats=None, finish_reason="error", failure=failure))
    assert "The capi" in [text.value for text in at.text]
    assert "The worker died." in at.error[0].value
    assert "Load it again." in at.error[0].value
    at.button(key="regenerate").click().run()
    assert calls(wb, "regenerate") == [("c1", FIRST, 256)]


def test_text_is_raw_and_markdown_on_request_fetches_no_image(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb, reply(content="**bold**\n![x](http://example.com/x.png)"))
    assert "**bold**\n![x](http://example.com/x.png)" in [text.value for text in at.text]
    at.toggle(key="markdown").set_value(True).run()
    drawn = [markdown.value for markdown in at.markdown if "bold" in markdown.value]
    assert drawn == ["**bold**\n!\u200b[x](http://example.com/x.png)"]


def test_a_question_is_edited(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb)
    at.text_area(key="edit-text-c1-0").set_value("And of Italy?").run()
    at.button(key="edit-send-c1-0").click().run()
    assert calls(wb, "edit") == [("c1", 0, "And of Italy?", FIRST, 256)]


def test_the_conversation_is_cleared(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb).button(key="clear-chat").click().run()
    assert calls(wb, "clear") == [("c1",)]
    assert "Say something to the model" in texts(at)


def test_a_changed_system_prompt_holds_from_the_next_reply(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb)
    at.text_area(key="system-c1").set_value("Answer in French.").run()
    assert calls(wb, "set_system")[0] == ("c1", "Answer in French.")


def test_what_no_longer_fits_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb, dataclasses.replace(fakes.conversation(), dropped=2, context_tokens=2000))
    assert "Context: 2,000 of 2,048 tokens" in [bar.text for bar in at.get("progress")]
    assert "the oldest 2 messages no longer fit" in at.warning[0].value


def test_a_conversation_that_is_gone_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = page("playground")
    at.query_params["chat"] = "unknown"
    at.run()
    assert "no longer there" in at.warning[0].value
    assert "chat" not in at.query_params


def test_the_conversation_moves_to_the_chosen_worker(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker("w2"), dataclasses.replace(fakes.conversation(), worker_id="gone"))
    at = page("playground")
    at.query_params["chat"] = "c1"
    at.run()
    assert calls(wb, "use_worker") == [("c1", "w2")]


def test_random_weights_are_labelled(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(random_weights=True), fakes.conversation())
    at = page("playground")
    at.query_params["chat"] = "c1"
    at.run()
    assert "the text is random" in texts(at)
    assert "ended by itself · random text" in texts(at)


def test_a_message_that_cannot_be_sent_says_why(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb)
    wb.errors["send"] = RequestRejected("The prompt has 9,000 tokens.", "Shorten it.")
    at.chat_input(key="message").set_value("long").run()
    assert "The prompt has 9,000 tokens." in at.error[0].value


def test_the_pace_of_the_last_reply(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb)
    assert "First token after 82.0 ms" in texts(at)


def test_exports_hold_the_conversation_and_its_figures() -> None:
    from pages._ui import chat_export

    document = json.loads(chat_export.as_json(fakes.conversation(), bundled()))
    assert [message["role"] for message in document["messages"]] == ["user", "assistant"]
    assert document["messages"][1]["stats"]["ttft_ms"] == 82.0
    assert document["recipe"]["dtype"] == "fp32"
    text = chat_export.as_markdown(fakes.conversation(), "SmolLM2")
    assert "## Assistant\n\nThe capital of France is Paris.\n\n*TTFT 82.0 ms" in text


def batch(wb: fakes.FakeWorkbench, page: Page, items: tuple[BatchItemView, ...] = ()) -> AppTest:
    wb.add(fakes.ready_worker())
    at = page("playground")
    if items:
        wb.batches["b1"] = items
        at.session_state["mcp_batch_id"] = "b1"
    at.run()
    return at.segmented_control(key="mode").set_value("Batch").run()


def test_a_batch_sends_a_prompt_a_line(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = batch(wb, page)
    at.text_area(key="batch-prompts").set_value("one\n\n two \n")
    at.number_input(key="batch-max-tokens").set_value(9).run()
    at.button(key="batch-run").click().run()
    assert calls(wb, "start_batch") == [("w1", ("one", "two"), FIRST, 9)]
    table = at.dataframe[0].value
    assert list(table["Prompt"]) == ["one", "two"]
    assert list(table["TTFT ms"]) == [82.0, 82.0]


def test_prompts_come_from_a_file(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = batch(wb, page)
    at.file_uploader(key="batch-file").upload("prompts.txt", b"a\nb\nc\n", "text/plain").run()
    assert at.button(key="batch-run").label == "Run 3 prompts"


def test_without_prompts_nothing_runs(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = batch(wb, page)
    at.text_area(key="batch-prompts").set_value("  \n").run()
    assert at.button(key="batch-run").disabled
    assert "Write at least one prompt." in texts(at)


def test_a_running_batch_shows_progress_and_stops(wb: fakes.FakeWorkbench, page: Page) -> None:
    stats = fakes.conversation().messages[1].stats
    items = (
        BatchItemView(0, "one", "ok", "A reply.", stats),
        BatchItemView(1, "two", "running", "A re"),
        BatchItemView(2, "three", "waiting"),
    )
    at = batch(wb, page, items)
    assert at.get("progress")[0].text == "1 of 3 prompts ended"
    assert at.button(key="batch-run").disabled
    at.button(key="batch-stop").click().run()
    assert calls(wb, "stop_batch") == [("b1",)]


def test_batch_totals_are_those_of_the_whole() -> None:
    from pages._ui.batch_box import batch_csv, batch_totals

    stats = fakes.conversation().messages[1].stats
    slow = dataclasses.replace(stats, e2e_ms=2000.0, output_tokens=12)
    failure = Failure(kind="request", message="Too long.", hint="Shorten it.")
    items = (
        BatchItemView(0, "one", "ok", "A, reply.", stats),
        BatchItemView(1, "two", "ok", "B", slow),
        BatchItemView(2, "three", "failed", failure=failure),
    )
    assert batch_totals(items) == (2.0, 20, 10.0)  # 8 + 12 tokens in the 2 s of the slowest
    assert batch_totals((items[2],)) is None
    lines = batch_csv(items).splitlines()
    assert lines[0] == "Prompt,State,Tokens,TTFT ms,E2E ms,tok/s,Reply"
    assert lines[1] == 'one,ok,8,82.0,330.0,24.2,"A, reply."'
    assert lines[3] == "three,failed,,,,,Too long."


def test_a_conversation_without_its_worker_stays_readable(wb: fakes.FakeWorkbench, page: Page) -> None:
    view = dataclasses.replace(
        fakes.conversation(), messages=(Message("system", "Be brief."), *fakes.conversation().messages)
    )
    wb.add(view)
    at = page("playground")
    at.query_params["chat"] = "c1"
    at.run()
    assert "The capital of France is Paris." in texts(at)
    assert "Be brief." not in [text.value for text in at.text]
    assert at.button(key="load-bundled")


def test_what_failed_or_died_loads_again_with_its_own_recipe(wb: fakes.FakeWorkbench, page: Page) -> None:
    own = bundled().replace({"dtype": "bf16"})
    wb.add(dataclasses.replace(fakes.failed_worker(state="died"), recipe=own))
    page("playground").run().button(key="load-again").click().run()
    assert calls(wb, "load") == [(own, None, False)]
    assert calls(wb, "dismiss") == [("w1",)]


def test_a_full_context_that_cut_the_reply_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = chat(page, wb, dataclasses.replace(fakes.conversation(), context_tokens=2048))
    assert "The last reply ended where the context did." in texts(at)


def test_a_context_that_was_not_counted_shows_no_old_figure_and_still_says_what_is_left_out(
    wb: fakes.FakeWorkbench, page: Page
) -> None:
    at = chat(page, wb, dataclasses.replace(fakes.conversation(), dropped=2, context_tokens=None))
    assert not at.get("progress")
    assert "Context: 2,048 tokens." in texts(at)
    assert "the oldest 2 messages no longer fit" in at.warning[0].value


def test_a_failure_without_text_does_not_speak_of_text(wb: fakes.FakeWorkbench, page: Page) -> None:
    failure = Failure(kind="request", message="Too long.", hint="Shorten it.")
    at = chat(page, wb, reply(content="", failure=failure, stats=None, finish_reason="error"))
    assert "What came so far is kept" not in texts(at)


def test_prompts_that_wait_and_prompts_that_were_stopped_are_called_so(wb: fakes.FakeWorkbench, page: Page) -> None:
    from pages._ui.batch_box import batch_csv

    items = (BatchItemView(0, "one", "running"), BatchItemView(1, "two", "cancelled"))
    lines = batch_csv(items).splitlines()
    assert lines[1].startswith("one,waiting,")
    assert lines[2].startswith("two,stopped,")
