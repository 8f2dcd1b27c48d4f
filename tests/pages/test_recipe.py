"""The Recipe page over a FakeWorkbench: what it offers, what it refuses and why, how it loads and applies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.errors import DoesNotFit, HubError, RecipeError
from mcp_core.models.prepared import PreparedModel
from mcp_core.presets import bundled, recipe_preset
from mcp_core.recipe import Recipe
from mcp_core.schemes import SCHEMES
from pages._ui.scheme_picker import family_of

Page = Callable[[str], AppTest]


def calls(wb: fakes.FakeWorkbench, method: str) -> list[tuple]:
    return [call[1:] for call in wb.calls if call[0] == method]


def texts(at: AppTest) -> str:
    kinds = (at.markdown, at.caption, at.info, at.warning, at.error, at.success)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def chosen_recipe(at: AppTest) -> Recipe:
    document = next(code.value for code in at.code if code.language == "json")
    return Recipe.from_json(document)


def with_recipe(at: AppTest, recipe: Recipe) -> AppTest:
    at.session_state["mcp_recipe"] = recipe
    return at


def pick(at: AppTest, scheme: str) -> AppTest:
    """Choose the scheme's family, then the scheme."""
    family = family_of(scheme)
    at.segmented_control(key="recipe-quantization.family-0").set_value(family).run()
    return at.radio(key=f"recipe-quantization.scheme-{family}-0").set_value(scheme).run()


def test_empty_shows_the_bundled_model_and_loads_it(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("recipe").run()
    assert not at.exception
    assert "Fits: needs 1.20 GB to load, 11.0 GB free of 16.0 GB on cpu." in at.success[0].value
    assert "46.1 MB per 1,000 tokens" in texts(at)
    at.button(key="load").click().run()
    assert calls(wb, "load") == [(bundled(), None, False)]
    assert "**Load**: reading weights · 4.0 s so far, about 6 s left" in [bar.text for bar in at.get("progress")]


def test_every_field_of_the_form_reaches_the_recipe(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("recipe").run()
    at.segmented_control(key="recipe-dtype-0").set_value("bf16")
    at.number_input(key="recipe-threads-0").set_value(3)
    pick(at, "bnb-nf4")
    at.toggle(key="recipe-quantization.double_quant-0").set_value(True)
    at.multiselect(key="recipe-quantization.skip-0").set_value(["*.down_proj", "*.o_proj"])
    at.selectbox(key="recipe-attention-0").set_value("eager")
    at.selectbox(key="recipe-kv.kind-0").set_value("static")
    at.number_input(key="recipe-kv.max_context-0").set_value(1024)
    at.segmented_control(key="recipe-batching.mode-0").set_value("static")
    at.selectbox(key="recipe-speculation-0").set_value("prompt-lookup")
    at.toggle(key="recipe-prefix_cache-0").set_value(True)
    at.number_input(key="recipe-batching.max_requests-0").set_value(8).run()
    assert chosen_recipe(at) == bundled().replace(
        {
            "dtype": "bf16",
            "threads": 3,
            "quantization.scheme": "bnb-nf4",
            "quantization.double_quant": True,
            "quantization.skip": ["*.down_proj", "*.o_proj"],
            "attention": "eager",
            "kv.kind": "static",
            "kv.max_context": 1024,
            "batching.mode": "static",
            "speculation": "prompt-lookup",
            "prefix_cache": True,
            "batching.max_requests": 8,
        }
    )


def test_every_change_asks_for_a_new_footprint(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("recipe").run()
    at.segmented_control(key="recipe-dtype-0").set_value("fp16").run()
    assert calls(wb, "footprint")[-1][0].dtype == "fp16"


def test_double_quantization_only_where_the_scheme_has_it(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), bundled().replace({"quantization.scheme": "bnb-int8"})).run()
    assert not [toggle for toggle in at.toggle if toggle.label == "Double quantization"]


def test_what_this_machine_cannot_run_is_not_offered_and_says_why(wb: fakes.FakeWorkbench, page: Page) -> None:
    libraries = {name: version for name, version in wb.machine.libraries.items() if name != "torchao"}
    wb.machine = wb.machine.model_copy(update={"libraries": libraries})
    at = page("recipe").run()
    at.segmented_control(key="recipe-quantization.family-0").set_value("8-bit").run()
    assert at.selectbox(key="recipe-attention-0").options == ["sdpa", "eager", "flex_attention"]
    assert "**flash_attention_2** runs on NVIDIA devices only." in texts(at)
    assert "torchao int8 weight-only" not in at.radio(key="recipe-quantization.scheme-8-bit-0").options
    assert "**torchao int8 weight-only** needs torchao, which is not installed." in texts(at)
    schemes = next(table.value for table in at.table if "Deploys as" in table.value)
    row = schemes[schemes["Scheme"] == "torchao int8 weight-only"].iloc[0]
    assert row["Here"] == "torchao-int8-weight-only needs torchao, which is not installed."


@pytest.mark.parametrize(("preset", "has_file"), [("bundled", True), ("llama-2-7b-shape", False)])
def test_a_file_s_own_scheme_is_compared_only_where_there_is_a_file(
    wb: fakes.FakeWorkbench, page: Page, preset: str, has_file: bool
) -> None:
    at = with_recipe(page("recipe"), recipe_preset(preset)).run()
    schemes = next(table.value for table in at.table if "Deploys as" in table.value)
    assert any("GGUF" in title for title in schemes["Scheme"]) == has_file


def test_a_cuda_machine_offers_its_device(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.machine = fakes.hardware(gpu=True)
    at = page("recipe").run()
    assert at.selectbox(key="recipe-device-0").options[-1] == "cuda:0 · NVIDIA H100 80GB HBM3"


def test_an_uploaded_recipe_this_machine_cannot_run_is_shown_and_not_loadable(
    wb: fakes.FakeWorkbench, page: Page
) -> None:
    at = with_recipe(page("recipe"), bundled().replace({"attention": "flash_attention_2"})).run()
    assert at.selectbox(key="recipe-attention-0").value == "flash_attention_2"
    assert at.button(key="load").disabled
    assert "Attention: flash_attention_2 runs on NVIDIA devices only. Choose sdpa." in texts(at)


def test_what_does_not_fit_needs_consent(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.footprint_value = fakes.footprint(fits=False, reason="Does not fit: needs 30 GB.")
    at = page("recipe").run()
    assert "Does not fit: needs 30 GB." in at.error[0].value
    assert at.button(key="load").disabled
    at.checkbox(key="load-anyway").check().run()
    at.button(key="load").click().run()
    assert calls(wb, "load") == [(bundled(), None, True)]


def test_a_refused_load_says_cause_and_hint(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.errors["load"] = DoesNotFit("It needs 30 GB.", "Choose a smaller model.")
    at = page("recipe").run().button(key="load").click().run()
    assert "It needs 30 GB." in at.error[0].value
    assert "Choose a smaller model." in at.error[0].value


def test_a_model_that_cannot_be_looked_up(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.errors["footprint"] = HubError("The Hub cannot be reached.", "Check the network.")
    at = page("recipe").run()
    assert "The Hub cannot be reached." in at.error[0].value
    assert at.button(key="load").disabled
    assert "could not be looked up" in texts(at)


def test_a_hub_model_with_a_token_for_this_visit(
    wb: fakes.FakeWorkbench, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    at = page("recipe").run()
    at.segmented_control(key="recipe-model.source-0").set_value("hub").run()
    assert "Type a Hub id" in at.warning[0].value
    assert at.button(key="load").disabled
    at.text_input(key="recipe-model.hub-0").set_value("owner/model")
    at.text_input(key="recipe-model.revision-0").set_value("v2")
    next(each for each in at.text_input if each.proto.type == each.proto.PASSWORD).set_value("hf_secret").run()
    at.button(key="load").click().run()
    recipe, token, _ = calls(wb, "load")[0]
    assert (recipe.model.source, recipe.model.id, recipe.model.revision) == ("hub", "owner/model", "v2")
    assert token == "hf_secret"
    assert "hf_secret" not in recipe.to_json()


def test_a_token_of_the_environment_is_used_and_said(
    wb: fakes.FakeWorkbench, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    at = with_recipe(page("recipe"), Recipe.from_dict({"model": {"source": "hub", "id": "owner/model"}})).run()
    assert "Using the token from the environment (HF_TOKEN)." in texts(at)
    at.button(key="load").click().run()
    assert calls(wb, "load")[0][1] == "hf_environment"


@pytest.mark.parametrize("source", ["folder", "gguf"])
def test_a_local_model(wb: fakes.FakeWorkbench, page: Page, source: str) -> None:
    at = page("recipe").run()
    at.segmented_control(key="recipe-model.source-0").set_value(source).run()
    at.text_input(key=f"recipe-model.{source}-0").set_value("/models/one").run()
    assert chosen_recipe(at).model.model_dump(include={"source", "id"}) == {"source": source, "id": "/models/one"}


def test_random_weights_say_so_and_custom_sizes_are_checked(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("recipe").run()
    at.segmented_control(key="recipe-model.source-0").set_value("shape").run()
    assert chosen_recipe(at).model.id == "llama-2-7b"
    assert "speed and memory are true, text is not" in texts(at)
    at.selectbox(key="recipe-model.shape-0").set_value("custom").run()
    at.number_input(key="recipe-model.shape.layers-0").set_value(2).run()
    assert chosen_recipe(at).model.shape.layers == 2
    at.number_input(key="recipe-model.shape.kv_heads-0").set_value(5).run()
    assert "not a multiple of kv_heads 5" in at.warning[0].value
    assert at.button(key="load").disabled


def test_a_preset_replaces_the_form(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("recipe").run()
    at.button(key="preset-qwen3-8b-shape").click().run()
    assert chosen_recipe(at) == recipe_preset("qwen3-8b-shape")
    assert at.segmented_control(key="recipe-dtype-1").value == "bf16"


def test_a_malformed_recipe_names_the_field(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("recipe").run()
    document = json.dumps({"quantization": {"scheme": "bnb-nf5"}}).encode()
    at.file_uploader(key="recipe-upload").upload("recipe.json", document, "application/json").run()
    at.button(key="recipe-use").click().run()
    assert any("quantization.scheme" in error.value.replace("\\", "") for error in at.error)
    assert chosen_recipe(at) == bundled()


def test_a_pasted_recipe_replaces_the_form(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("recipe").run()
    at.text_area(key="recipe-pasted").set_value('{"dtype": "fp16"}').run()
    at.button(key="recipe-use").click().run()
    assert chosen_recipe(at).dtype == "fp16"
    assert at.segmented_control(key="recipe-dtype-1").value == "fp16"


def test_loading_shows_progress_and_cancels(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.loading_worker())
    at = page("recipe").run()
    assert "reading weights" in at.get("progress")[0].text
    at.button(key="cancel-load").click().run()
    assert calls(wb, "cancel_load") == [("w1",)]
    assert at.button(key="load").disabled is False


def test_a_failed_load_shows_cause_log_and_loads_again(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.failed_worker("old"))
    at = page("recipe").run()
    assert "Memory ran out while loading." in at.error[0].value
    assert "Choose a 4-bit scheme." in at.error[0].value
    assert any("killed" in code.value for code in at.code)
    assert at.button(key="load").label == "Load again"
    at.button(key="load").click().run()
    assert calls(wb, "dismiss") == [("old",)]
    assert calls(wb, "load") == [(bundled(), None, False)]


def test_ready_compares_predicted_with_measured_and_unloads(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = page("recipe").run()
    memory = next(table.value for table in at.table if "Measured" in table.value)
    weights, load_peak, serve_peak = (memory.iloc[row] for row in range(3))
    assert list(weights) == ["Weights", "538 MB", "538 MB", "+0%"]
    assert list(load_peak) == ["Load peak", "1.20 GB", "1.31 GB", "+9%"]
    assert list(serve_peak) == ["Serve peak", "1.09 GB", "630 MB", "so far"]
    at.button(key="unload").click().run()
    assert calls(wb, "unload") == [("w1",)]


def test_unloading_asks_first_when_others_use_the_worker(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(users=3))
    at = page("recipe").run()
    assert "**3 other conversations**" in texts(at)
    at.button(key="unload-sure").click().run()
    assert calls(wb, "unload") == [("w1",)]


def test_a_loaded_recipe_has_nothing_to_apply(wb: fakes.FakeWorkbench, page: Page) -> None:
    resolved = bundled().replace({"device": "cpu", "model.sha256": "a" * 64})
    wb.add(fakes.ready_worker(recipe=resolved))
    at = page("recipe").run()
    assert "Not applied yet" not in texts(at)


def test_a_live_change_is_applied_without_a_reload(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker())
    at = page("recipe").run()
    at.number_input(key="recipe-batching.max_requests-0").set_value(8).run()
    assert "Max requests: `64` → `8`" in texts(at)
    assert "Applies live" in texts(at)
    at.button(key="apply").click().run()
    assert calls(wb, "apply_live") == [("w1", bundled().replace({"batching.max_requests": 8}))]
    assert not calls(wb, "load")


def test_a_reload_replaces_or_runs_side_by_side(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker("old"))
    at = page("recipe").run()
    at.segmented_control(key="recipe-dtype-0").set_value("bf16").run()
    assert "Dtype: `fp32` → `bf16`" in texts(at)
    at.segmented_control(key="reload-way").set_value("Side by side").run()
    at.button(key="apply").click().run()
    assert [call[0] for call in wb.calls if call[0] in ("unload", "load")] == ["load"]


def test_a_reload_that_fits_only_alone_unloads_first(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker("old"))
    wb.footprint_value = fakes.footprint(fits=False, free_bytes=1 * fakes.GB, reason="Does not fit: needs 1.2 GB.")
    at = page("recipe").run()
    at.segmented_control(key="recipe-dtype-0").set_value("bf16").run()
    assert "Both do not fit at once" in texts(at)
    at.button(key="apply").click().run()
    assert [call[0] for call in wb.calls if call[0] in ("unload", "load")] == ["unload", "load"]


def test_the_load_peak_is_compared_with_what_was_predicted_before_loading(
    wb: fakes.FakeWorkbench, page: Page
) -> None:
    predicted = fakes.footprint(load_peak_bytes=1_310 * fakes.MB).as_prediction()
    wb.add(dataclasses.replace(fakes.ready_worker(), predicted=predicted))
    memory = next(table.value for table in page("recipe").run().table if "Measured" in table.value)
    assert list(memory.iloc[1]) == ["Load peak", "1.31 GB", "1.31 GB", "+0%"]


def test_a_gpu_s_load_is_not_compared_with_what_the_host_held(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(dataclasses.replace(fakes.ready_worker(), device="cuda:0"))
    memory = next(table.value for table in page("recipe").run().table if "Measured" in table.value)
    assert list(memory.iloc[1]) == ["Host, peak while loading", "–", "1.31 GB", ""]


def test_what_the_program_takes_stands_beside_the_serving_peak(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.footprint_value = fakes.footprint(peak_bytes=394 * fakes.MB, imports_bytes=451 * fakes.MB)
    assert "serving 394 MB and 451 MB for the program itself, together 845 MB" in texts(page("recipe").run())


def test_models_on_this_machine_are_listed_and_deleted(wb: fakes.FakeWorkbench, page: Page) -> None:
    model = PreparedModel("a" * 64, "SmolLM2", Path("/x"), 538 * fakes.MB, datetime.now(UTC), "prepared")
    wb.models = (model, dataclasses.replace(model, id="hub:o/m", title="o/m", bytes=2 * fakes.GB, kind="hub"))
    at = page("recipe").run()
    assert "2 models, 2.54 GB on disk." in texts(at)
    at.button(key="delete-sure-hub:o/m").click().run()
    assert calls(wb, "delete_model") == [("hub:o/m",)]
    assert "1 model, 538 MB on disk." in texts(at)


def test_an_uploaded_recipe_with_a_scheme_of_another_version_says_so_and_the_page_stands(
    wb: fakes.FakeWorkbench, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(SCHEMES, "gguf")
    wb.errors["footprint"] = RecipeError("quantization.scheme: not built in this version.", "There are: none.")
    at = with_recipe(page("recipe"), bundled().replace({"quantization.scheme": "gguf"})).run()
    assert not at.exception
    assert at.button(key="load").disabled
    assert "gguf is not built in this version" in texts(at)
