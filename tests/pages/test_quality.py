"""The Quality page over a FakeWorkbench: what starts, what came out, the token map, further checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.errors import Busy
from mcp_core.evaluation import length_drift, task_check
from mcp_core.evaluation.length_drift import Reply
from mcp_core.evaluation.task_check import TaskItem
from mcp_core.presets import bundled
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.results import Failure, Fidelity, Mean, StoredFidelity, StratumFidelity, TopKTruncation
from pages._ui.charts import colour_of
from pages._ui.fidelity_result import as_csv
from pages._ui.fidelity_table import _alike, comparison_figure
from pages._ui.frame import PAGES
from pages._ui.token_map import _readable, level_of, worst_token

Page = Callable[[str], AppTest]
NF4 = bundled().replace({"quantization.scheme": "bnb-nf4"})


def calls(wb: fakes.FakeWorkbench, method: str) -> list[tuple]:
    return [call[1:] for call in wb.calls if call[0] == method]


def texts(at: AppTest) -> str:
    kinds = (at.markdown, at.caption, at.info, at.warning, at.error)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def judged(recipe: Recipe = NF4, **changes: Any) -> StoredFidelity:
    """A whole Fidelity: two kinds of text, a noise floor, notes."""
    stored = fakes.fidelity(recipe)
    base = stored.fidelity
    row = StratumFidelity(
        name="code",
        documents=4,
        tokens=1900,
        perplexity=Mean(mean=9.5, se=0.2),
        reference_perplexity=Mean(mean=7.5, se=0.1),
        kl=base.kl.model_copy(update={"mean": 0.31}),
        top1=base.top1,
        rms_dp=Mean(mean=0.11, se=0.01),
    )
    prose = row.model_copy(update={"name": "prose", "kl": base.kl.model_copy(update={"mean": 0.12})})
    whole = {
        "text_name": "built-in evaluation set",
        "perplexity": Mean(mean=12.5, se=0.4),
        "reference_perplexity": Mean(mean=10.1, se=0.3),
        "rms_dp": Mean(mean=0.105, se=0.004),
        "noise_floor": Mean(mean=0.00125),
        "kl_over_floor": 149.6,
        "strata": (row, prose),
        "notes": ("screening only: 12 documents",),
    }
    return stored.model_copy(update={"fidelity": base.model_copy(update=whole | changes)})


def with_fidelity(wb: fakes.FakeWorkbench, *stored: StoredFidelity) -> None:
    wb.studies.stored = stored
    wb.studies.token_maps = {each.fidelity.key: fakes.token_map() for each in stored}


def opened(page: Page, stored: StoredFidelity) -> AppTest:
    at = page("quality")
    at.query_params["fidelity"] = stored.fidelity.key
    return at.run()


def test_at_first_it_says_what_to_do(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("quality").run()
    assert not at.exception
    assert "Nothing is measured for this Recipe yet. Press Measure fidelity" in texts(at)
    at.button(key="start-fidelity").click().run()
    assert calls(wb, "start_fidelity") == [(bundled(), None, None)]
    assert "a part" in at.get("progress")[0].text
    assert at.button(key="start-fidelity").disabled
    at.button(key="cancel-fidelity-1").click().run()
    assert calls(wb, "cancel_job") == [("fidelity-1",)]
    assert "was cancelled" in texts(at)


def test_the_answer_comes_first_and_the_worst_text_before_the_others(wb: fakes.FakeWorkbench, page: Page) -> None:
    with_fidelity(wb, judged())
    at = opened(page, judged())
    assert not at.exception
    assert "150× the noise floor (KL 0.187 nats); top-1 agreement 70.0%" in texts(at)
    assert [metric.value for metric in at.metric][:3] == ["0.187", "70.0%", "12.5"]
    assert [metric.delta for metric in at.metric][:3] == ["± 0.02", "± 1.0%", "± 0.4"]
    assert "##### Worst on code" in texts(at)
    assert list(at.table[0].value["Kind of text"]) == ["code", "prose"]
    assert "Screening only\\: 12 documents" in at.warning[0].value


def test_what_is_below_twice_the_floor_reads_as_rounding(wb: fakes.FakeWorkbench, page: Page) -> None:
    same = judged(kl_over_floor=1.3)
    with_fidelity(wb, same)
    assert "No more than rounding does: 1.30× the noise floor" in texts(opened(page, same))


@pytest.mark.parametrize("status", ["not-measurable", "lossless-by-test"])
def test_what_was_not_measured_says_why(wb: fakes.FakeWorkbench, page: Page, status: str) -> None:
    told = judged(status=status, reason="The server echoes nothing.", kl=None, top1=None, strata=())
    with_fidelity(wb, told)
    at = opened(page, told)
    assert not at.exception
    assert "The server echoes nothing." in at.info[0].value
    assert not at.metric


def test_a_server_s_answer_states_what_it_leaves_out(wb: fakes.FakeWorkbench, page: Page) -> None:
    cut = judged(path="endpoint", engine="endpoint", truncation=TopKTruncation(top_k=20, tail_mass=0.031))
    with_fidelity(wb, cut)
    wb.studies.token_maps = {}
    at = opened(page, cut)
    assert "names 20 alternatives a token; 3.10% of the reference's probability lies outside" in texts(at)
    assert "gives no token map" in texts(at)


def test_a_token_map_that_was_not_kept_is_not_blamed_on_a_server(wb: fakes.FakeWorkbench, page: Page) -> None:
    with_fidelity(wb, judged())
    wb.studies.token_maps = {}
    said = texts(opened(page, judged()))
    assert "Its token map is not on this machine." in said
    assert "server gives no token map" not in said


def test_the_newest_of_the_current_recipe_is_shown_without_a_link(wb: fakes.FakeWorkbench, page: Page) -> None:
    with_fidelity(wb, judged(), judged(bundled(), kl_over_floor=2.5))
    assert "2.50× the noise floor" in texts(page("quality").run())


def test_a_link_to_what_is_gone_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("quality")
    at.query_params["fidelity"] = "0" * 64
    assert "not on this machine" in at.run().warning[0].value


def test_what_the_job_found_is_opened(wb: fakes.FakeWorkbench, page: Page) -> None:
    with_fidelity(wb, judged())
    answer = {"fidelity": judged().fidelity.model_dump(mode="json"), "cached": False}
    wb.add(fakes.study_job("fidelity", state="done", progress=None, result=answer))
    assert "150× the noise floor" in texts(page("quality").run())


def test_why_it_failed_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    failure = Failure(kind="oom", message="Memory ran out.", hint="Choose a smaller model.")
    wb.add(fakes.study_job("fidelity", state="failed", progress=None, failure=failure))
    assert "Memory ran out." in page("quality").run().error[0].value


def test_a_busy_device_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.errors["start_fidelity"] = Busy("A reply is being written.", "Stop it first.")
    at = page("quality").run().button(key="start-fidelity").click().run()
    assert "A reply is being written." in at.error[0].value


def test_an_own_text_can_be_pasted_and_is_scored(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("quality").run()
    at.text_area(key="fidelity-own-pasted").set_value("A text of my own. " * 40).run()
    at.button(key="fidelity-own-add").click().run()
    sha256 = wb.studies.kept_texts[0].sha256
    at.selectbox(key="fidelity-text").set_value(sha256).run()
    at.button(key="start-fidelity").click().run()
    assert calls(wb, "start_fidelity")[0][1] == sha256


def test_a_letter_of_several_tokens_reads_as_it_was_written() -> None:
    assert _readable(["Dorf", "bytes:\\x20\\xc3", "bytes:\\xbc", "ber"]) == ["Dorf", " ", "ü", "ber"]


def test_the_token_map_opens_the_worst_token_and_the_fork(wb: fakes.FakeWorkbench, page: Page) -> None:
    with_fidelity(wb, judged())
    at = opened(page, judged())
    box = next(each for each in at.selectbox if each.label == "Text" and "mean KL" in each.options[0])
    assert box.options[0].startswith("persuasion 3 · prose · mean KL 0.52")
    assert "**Token 5:** ␣certain" in texts(at)
    assert "KL 2.60 nats · probability of this token 52.0% by the reference, 47.0% by this Recipe" in texts(at)
    guesses = at.table[1].value
    assert list(guesses["Reference"])[:3] == ["␣certain · 52.0%", "␣other · 20.0%", "↵ · 10.0%"]
    assert guesses["Reference"][3].startswith("\\<b\\>")
    at = box.set_value(1).run()
    assert "**Token 8:** ␣long" in texts(at)
    assert "the reference says **␣long**, this Recipe **␣wide**" in texts(at)


def test_shades_rise_with_kl() -> None:
    assert [level_of(kl) for kl in (None, 0, 0.02, 0.2, 0.9, 5)] == [None, 0, 1, 2, 3, 4]
    assert worst_token(fakes.token_map().documents[0].tokens) == 5
    assert worst_token([fakes.mapped("a", None)]) is None


def test_all_fidelities_are_listed_and_compared_in_their_recipes_colours(
    wb: fakes.FakeWorkbench, page: Page
) -> None:
    with_fidelity(wb, judged(), judged(bundled()))
    at = page("quality").run()
    assert [each.startswith("fp32") for each in at.dataframe[0].value["Recipe"]] == [True, True]
    assert len(at.get("plotly_chart")) == 1
    figure = comparison_figure((judged(), judged(bundled())))
    assert set(figure.data[0].marker.color) == {colour_of(NF4.fingerprint), colour_of(bundled().fingerprint)}


def test_the_csv_has_a_row_for_all_and_one_a_kind() -> None:
    lines = as_csv(judged().fidelity).splitlines()
    assert lines[0].startswith("text,documents,tokens,kl_mean_nats,kl_mean_se")
    assert [line.split(",")[0] for line in lines[1:]] == ["all", "code", "prose"]
    assert "None" not in as_csv(Fidelity(status="not-measurable"))


def test_a_running_server_is_asked_for_by_url(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("quality").run()
    at.text_input(key="server-url").set_value("http://127.0.0.1:8000 ")
    next(button for button in at.button if button.label == "Measure this server").click().run()
    assert calls(wb, "start_endpoint-fidelity") == [(bundled(), "http://127.0.0.1:8000", None)]


def test_length_drift_starts_and_shows_where_replies_part(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("quality").run()
    at.number_input(key="drift-limit").set_value(64).run()
    at.button(key="start-drift").click().run()
    assert calls(wb, "start_length-drift") == [(bundled(), None, 64, None)]
    chats = [[{"role": "user", "content": f"question {index}"}] for index in range(6)]
    short = [Reply(text="one two three", tokens=3, capped=False)] * 6
    long = [Reply(text="one two <b>four</b> five", tokens=5, capped=False)] * 6
    drift = length_drift.compare(chats, ("native", short), ("nf4", long), 64)
    ended = fakes.study_job("length-drift", state="done", progress=None, result=drift.model_dump(mode="json"))
    wb.studies.newest["length-drift"] = ended
    at = page("quality").run()
    assert not at.exception
    assert "#### The candidate says more" in texts(at)
    assert [metric.value for metric in at.metric] == ["1.67", "0% vs 0%", "0%"]
    assert "95 % interval 1.67 to 1.67, by bootstrap over 6 prompts" in texts(at)
    assert "one two **:orange[\\<b\\>four\\</b\\>]** five" in texts(at)


def test_the_task_check_shows_flips(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("quality").run()
    at.button(key="start-tasks").click().run()
    assert calls(wb, "start_task-check") == [(bundled(), None, None, None)]
    items = [TaskItem(context=f"Item {index}", choices=("yes", "no"), answer=0) for index in range(20)]
    check = task_check.compare("twenty", items, ("native", [0] * 20), ("nf4", [1] * 8 + [0] * 12))
    ended = fakes.study_job("task-check", state="done", progress=None, result=check.model_dump(mode="json"))
    wb.studies.newest["task-check"] = ended
    at = page("quality").run()
    assert not at.exception
    assert "#### 8 lost, 0 won of 20: this Recipe answers worse" in texts(at)
    assert len(at.table[-1].value) == 8
    assert "-40.0 points" in [metric.value for metric in at.metric]


def test_random_weights_say_nothing(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("quality")
    at.session_state["mcp_recipe"] = Recipe.from_dict({"model": {"source": "shape", "id": "llama-2-7b"}})
    at.run()
    assert at.button(key="start-fidelity").disabled
    assert "random weights" in texts(at)
    assert "Press Measure fidelity" not in texts(at)


def test_the_page_is_in_the_frame_after_measure() -> None:
    names = [page.name for page in PAGES]
    assert names.index("quality") == names.index("measure") + 1


def test_a_checkpoint_that_comes_quantized_is_compared_with_its_original(page, wb):
    stored = bundled().replace({"model": {"source": "folder", "id": "/models/nf4"}})
    at = page("quality")
    at.session_state["mcp_recipe"] = stored
    at = at.run()
    at.text_input(key="fidelity-original").set_value("bundled").run()
    at.button(key="start-fidelity").click().run()
    assert calls(wb, "start_fidelity") == [(stored, None, None, ("original", ModelRef()))]


def test_a_checkpoint_stands_beside_the_schemes_of_the_model_that_it_was_made_of(page, wb):
    own = judged(bundled().replace({"model": {"source": "folder", "id": "/models/gptq"}}))
    other = judged(own.recipe.replace({"model.id": "/models/unlike"}), reference_perplexity=Mean(mean=99.0))
    alike = _alike([own, other, judged()])
    assert {each.recipe.model.id for each in alike} == {"/models/gptq", bundled().model.id}
    names = comparison_figure(alike).data[0].y
    assert {name.partition(",")[0] for name in names} == {"gptq", "SmolLM2-135M-Instruct"}
    assert not any(name.startswith("SmolLM2") for name in comparison_figure([judged()]).data[0].y)
