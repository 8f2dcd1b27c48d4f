"""What the Recipe page knows of quantization: schemes and their fields, what was measured, layers, calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from mcp_core.conflicts import options_read_by
from mcp_core.errors import Busy
from mcp_core.presets import bundled
from mcp_core.recipe import Quantization, Recipe
from mcp_core.schemes import SCHEMES
from pages._ui.quantization_charts import Bubble, alpha_figure, effects_figure, groups_figure, ranges_figure
from pages._ui.scheme_picker import _FIELDS, FAMILIES, family_of

Page = Callable[[str], AppTest]

NF4 = bundled().replace({"quantization.scheme": "bnb-nf4"})
BF16 = bundled().replace({"dtype": "bf16"})


def calls(wb: fakes.FakeWorkbench, method: str) -> list[tuple]:
    return [call[1:] for call in wb.calls if call[0] == method]


def texts(at: AppTest) -> str:
    kinds = (at.markdown, at.caption, at.info, at.warning, at.error, at.success)
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def chosen_recipe(at: AppTest) -> Recipe:
    return Recipe.from_json(next(code.value for code in at.code if code.language == "json"))


def with_recipe(at: AppTest, recipe: Recipe) -> AppTest:
    at.session_state["mcp_recipe"] = recipe
    return at


def labels(at: AppTest) -> set[str]:
    kinds = (at.toggle, at.selectbox, at.number_input, at.segmented_control, at.multiselect)
    return {element.label for kind in kinds for element in kind}


def table_with(at: AppTest, column: str) -> list[dict[str, str]]:
    found = next(table.value for table in at.table if column in table.value)
    return found.to_dict("records")


def test_every_scheme_stands_in_one_family() -> None:
    listed = [name for names in FAMILIES.values() for name in names]
    assert sorted(listed) == sorted(set(listed))
    assert {name for name in SCHEMES if family_of(name) == "Other"} <= {"gguf"}


def test_every_option_that_a_scheme_reads_has_a_widget() -> None:
    assert set(_FIELDS) == {field for name in SCHEMES for field in options_read_by(name)} | set(_FIELDS)
    assert set(_FIELDS) | {"scheme", "skip"} == set(Quantization.model_fields)


FIELDS = {
    "bnb-nf4": {"Double quantization"},
    "bnb-int8": {"Outlier threshold"},
    "torchao-int4-weight-only": {"Group size", "Scales"},
    "torchao-int8-dynamic": {"Activations"},
    "torchao-int8-weight-only": set(),
}
ALL_FIELDS = set.union(*FIELDS.values()) | {"Calibration text", "Samples, passages", "Length, tokens", "Alpha"}


@pytest.mark.parametrize("scheme", FIELDS)
def test_only_the_fields_that_the_scheme_reads_are_drawn(wb: fakes.FakeWorkbench, page: Page, scheme: str) -> None:
    at = with_recipe(page("recipe"), BF16.replace({"quantization.scheme": scheme})).run()
    assert not at.exception
    assert labels(at) & ALL_FIELDS == FIELDS[scheme]
    assert "Keep dense" in labels(at)


def test_the_static_schemes_calibration_reaches_the_recipe(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), bundled().replace({"quantization.scheme": "torchao-int8-static-smoothquant"}))
    at.run()
    assert labels(at) & ALL_FIELDS == {"Calibration text", "Samples, passages", "Length, tokens", "Alpha"}
    at.number_input(key="recipe-quantization.calibration.samples-0").set_value(8)
    at.number_input(key="recipe-quantization.calibration.tokens-0").set_value(128)
    at.number_input(key="recipe-quantization.alpha-0").set_value(0.8).run()
    chosen = chosen_recipe(at).quantization
    assert (chosen.calibration.samples, chosen.calibration.tokens, chosen.alpha) == (8, 128, 0.8)


def test_leaving_a_scheme_leaves_its_options_behind(wb: fakes.FakeWorkbench, page: Page) -> None:
    recipe = NF4.replace({"quantization.double_quant": True, "quantization.skip": ["*.down_proj"]})
    at = with_recipe(page("recipe"), recipe).run()
    at.segmented_control(key="recipe-quantization.family-0").set_value("8-bit").run()
    assert chosen_recipe(at).quantization == Quantization(scheme="bnb-int8", skip=("*.down_proj",))
    at.segmented_control(key="recipe-quantization.family-0").set_value("Unquantized").run()
    assert chosen_recipe(at).quantization == Quantization()


def test_a_checkpoint_that_comes_quantized_is_said_under_none(wb: fakes.FakeWorkbench, page: Page) -> None:
    said = "The checkpoint comes quantized (gptq w4a16) and is loaded so."
    wb.resolved.comes_as = lambda *_: said
    at = page("recipe").run()
    assert said in texts(at)
    at.segmented_control(key="recipe-model.source-0").set_value("hub").run()
    assert said not in texts(at)  # no model is chosen now


def test_kv_kinds_have_their_own_fields(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = page("recipe").run()
    assert not {"Window, tokens", "Stored bits"} & labels(at)
    at.selectbox(key="recipe-kv.kind-0").set_value("sliding").run()
    at.number_input(key="recipe-kv.window-0").set_value(256).run()
    assert chosen_recipe(at).kv.window == 256
    at.selectbox(key="recipe-kv.kind-0").set_value("dynamic").run()
    assert chosen_recipe(at).kv == bundled().kv


def test_switches_reach_the_recipe_or_say_why_not(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.machine = fakes.hardware(gpu=True)
    at = page("recipe").run()
    at.toggle(key="recipe-switches.tf32-0").set_value(True)
    at.selectbox(key="recipe-switches.autocast-0").set_value("bf16").run()
    switches = chosen_recipe(at).switches
    assert (switches.tf32, switches.autocast, switches.cudnn_benchmark) == (True, "bf16", False)


def test_nothing_is_invented_where_nothing_was_measured(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), NF4).run()
    rows = {row[""]: row for row in table_with(at, "Change")}
    assert rows["Weights"]["This Recipe"] == "538 MB predicted"
    for name in ("TPOT", "KL", "Top-1 agreement"):
        assert (rows[name]["Unquantized"], rows[name]["This Recipe"], rows[name]["Change"]) == (
            "not measured",
            "not measured",
            "",
        )
    assert "A bubble appears" in texts(at)
    assert "Its speed can be measured once it is loaded." in texts(at)


def measured(wb: fakes.FakeWorkbench) -> fakes.FakeWorkbench:
    """The bundled model dense and in NF4, both with speed and fidelity; NF4 weighs half and is twice as slow."""
    dense = fakes.ok_run()
    memory = fakes.memory().model_copy(update={"weights_bytes": 269 * fakes.MB, "peak_bytes": 315 * fakes.MB})
    slower = dense.measurement.model_copy(update={"tpot_ms": fakes.quantiles(63.0), "output_tok_s": 15.0})
    wb.add(dense, fakes.ok_run("nf4", NF4, memory=memory, measurement=slower))
    wb.studies.stored = (fakes.fidelity(NF4), fakes.fidelity(bundled(), kl=0.0005, top1=0.99))
    return wb


def test_before_and_after_from_runs_and_fidelities(wb: fakes.FakeWorkbench, page: Page) -> None:
    measured(wb)
    at = with_recipe(page("recipe"), NF4).run()
    rows = {row[""]: list(row.values())[1:] for row in table_with(at, "Change")}
    assert rows["Weights"] == ["538 MB", "269 MB", "-50%"]
    assert rows["Peak"] == ["630 MB", "315 MB", "-50%"]
    assert rows["TPOT"] == ["31.5 ms", "63.0 ms", "+100%"]
    assert rows["KL"] == ["0.0005 ± <0.0001 nats", "0.187 ± 0.0187 nats", ""]
    assert rows["Top-1 agreement"] == ["99.0%", "70.0%", ""]
    assert not [button for button in at.button if button.key in ("judge", "measure-speed")]


def test_a_noisy_run_is_called_so_beside_its_figures(wb: fakes.FakeWorkbench, page: Page) -> None:
    measured(wb)
    noisy = wb.run_values[0].comparable.model_copy(
        update={"ok": False, "reasons": ("noisy: others used 1.8 cores",)}
    )
    wb.run_values[0] = wb.run_values[0].model_copy(update={"comparable": noisy})
    at = with_recipe(page("recipe"), NF4).run()
    doubts = [caption.value for caption in at.caption if "Unquantized, speed:" in caption.value]
    assert len(doubts) == 1
    assert "noisy" in doubts[0]


def test_the_picker_says_what_was_measured(wb: fakes.FakeWorkbench, page: Page) -> None:
    measured(wb)
    at = page("recipe").run()
    at.segmented_control(key="recipe-quantization.family-0").set_value("4-bit").run()
    captions = at.radio(key="recipe-quantization.scheme-4-bit-0").proto.captions
    assert "**Measured here: weights 269 MB, 63.0 ms a token, KL 0.187 nats.**" in captions[0]
    assert "Measured" not in captions[1]


def test_the_effects_picture_has_a_bubble_for_each_measured_configuration(
    wb: fakes.FakeWorkbench, page: Page
) -> None:
    measured(wb).add(fakes.ok_run("int8", bundled().replace({"quantization.scheme": "bnb-int8"})))
    at = page("recipe").run()
    assert [row["KL, nats"] for row in table_with(at, "Configuration")] == ["0.0005", "0.187"]
    assert "1 more configuration with speed but without fidelity on the same text." in texts(at)


def test_one_click_measures_fidelity_and_follows_it(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), NF4).run()
    at.button(key="judge").click().run()
    assert calls(wb, "start_fidelity")[0][:2] == (NF4, None)
    assert "Fidelity of SmolLM2-135M-Instruct" in texts(at)
    assert not [button for button in at.button if button.key == "judge"]


def test_one_click_measures_the_speed_of_a_loaded_recipe(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.add(fakes.ready_worker(recipe=NF4))
    at = with_recipe(page("recipe"), NF4).run()
    at.button(key="measure-speed").click().run()
    assert calls(wb, "start_bench")[0][0] == "w1"


def test_a_busy_device_is_said(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.errors["start_fidelity"] = Busy("It is at work on cpu.", "Wait until it is idle.")
    at = page("recipe").run().button(key="judge").click().run()
    assert "It is at work on cpu." in at.error[0].value


def test_sensitivity_starts_and_shows_progress(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), NF4).run()
    at.segmented_control(key="sensitivity-by").set_value("Kinds of module").run()
    at.button(key="sensitivity-start").click().run()
    assert calls(wb, "start_sensitivity") == [(NF4, "module", 512, None)]
    assert "a part" in " ".join(bar.text for bar in at.get("progress"))


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        (bundled(), "none quantizes nothing"),
        (
            Recipe.from_dict(
                {"model": {"source": "shape", "id": "llama-2-7b"}, "quantization": {"scheme": "bnb-nf4"}}
            ),
            "Random weights",
        ),
    ],
)
def test_sensitivity_says_why_it_cannot_start(
    wb: fakes.FakeWorkbench, page: Page, recipe: Recipe, reason: str
) -> None:
    at = with_recipe(page("recipe"), recipe).run()
    assert at.button(key="sensitivity-start").disabled
    assert reason in texts(at)


def sensitive(wb: fakes.FakeWorkbench) -> None:
    result = fakes.sensitivity().model_dump(mode="json")
    wb.studies.newest["sensitivity"] = fakes.study_job("sensitivity", state="done", progress=None, result=result)


def test_a_mixed_recipe_in_one_click(wb: fakes.FakeWorkbench, page: Page) -> None:
    sensitive(wb)
    at = with_recipe(page("recipe"), NF4).run()
    assert "Most sensitive: **model.layers.0** (0.08), **model.layers.10** (0.05)" in texts(at)
    # 0.08 of 0.16 goes with the first group: half remains, which is the budget.
    assert "Keeps 1 group dense: weights **502 MB** (+12.0 MB), about **50%** less KL (estimated)." in texts(at)
    at.button(key="use-mixed").click().run()
    assert chosen_recipe(at) == NF4.replace({"quantization.skip": ["model.layers.0.*"]})
    assert at.button(key="use-mixed").disabled


def test_a_memory_budget(wb: fakes.FakeWorkbench, page: Page) -> None:
    sensitive(wb)
    at = with_recipe(page("recipe"), NF4).run()
    at.segmented_control(key="mixed-way").set_value("Spend memory").run()
    at.slider(key="mixed-memory").set_value(5).run()  # 24.5 MB of 490 MB: two groups of 12 MB
    assert "Keeps 2 groups dense" in texts(at)
    at.slider(key="mixed-memory").set_value(0).run()
    assert "every group stays quantized" in texts(at)


def test_a_failed_sensitivity_study_says_why(wb: fakes.FakeWorkbench, page: Page) -> None:
    failure = fakes.Failure(kind="oom", message="Memory ran out.", hint="Ask for fewer tokens.")
    job = fakes.study_job("sensitivity", state="failed", progress=None, failure=failure)
    wb.studies.newest["sensitivity"] = dataclasses.replace(job)
    at = with_recipe(page("recipe"), NF4).run()
    assert "Memory ran out." in at.error[0].value
    assert not at.button(key="sensitivity-start").disabled


def test_saving_a_quantized_checkpoint(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), NF4).run()
    assert at.text_input(key="save-name").value == "smollm2-135m-instruct-bnb-nf4"
    at.text_input(key="save-name").set_value("../elsewhere").run()
    assert at.button(key="save").disabled
    at.text_input(key="save-name").set_value("own").run()
    at.button(key="save").click().run()
    recipe, out, form, _ = calls(wb, "start_quantize")[0]
    assert (recipe, out.name, out.parent.name, form) == (NF4, "own", "written", "library")
    assert not [button for button in at.button if button.key == "save"]


def test_a_saved_checkpoint_says_where_it_is_and_is_used(wb: fakes.FakeWorkbench, page: Page) -> None:
    saved = {"folder": "/x/own", "format": "library", "bytes": 210 * fakes.MB, "files": ["model.safetensors"]}
    wb.studies.newest["quantize"] = fakes.study_job("quantize", state="done", progress=None, result=saved)
    at = with_recipe(page("recipe"), NF4).run()
    assert "**210 MB in** `/x/own`" in texts(at)
    at.button(key="save-use").click().run()
    chosen = chosen_recipe(at)
    assert (chosen.model.source, chosen.model.id, chosen.quantization.scheme) == ("folder", "/x/own", "none")


def test_a_saved_gguf_is_used_by_llama_cpp(wb: fakes.FakeWorkbench, page: Page) -> None:
    saved = {"folder": "/x/own", "format": "gguf", "bytes": 145 * fakes.MB, "files": ["own-Q8_0.gguf"]}
    wb.studies.newest["quantize"] = fakes.study_job("quantize", state="done", progress=None, result=saved)
    at = with_recipe(page("recipe"), bundled()).run()
    at.button(key="save-use").click().run()
    chosen = chosen_recipe(at)
    assert (chosen.model.source, chosen.model.id) == ("gguf", "/x/own/own-Q8_0.gguf")
    assert (chosen.engine, chosen.quantization.scheme) == ("llama.cpp", "gguf")


def test_what_cannot_be_saved_says_why(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), bundled().replace({"quantization.scheme": "classic-dynamic"})).run()
    assert "only pickle can write" in texts(at)
    assert not [button for button in at.button if button.key == "save"]


def test_calibration_takes_a_pasted_text_into_the_recipe(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), bundled().replace({"quantization.scheme": "torchao-int8-static"})).run()
    at.text_area(key="calibration-text-pasted").set_value("A long walk by the sea. " * 40).run()
    at.button(key="calibration-text-add").click().run()
    assert chosen_recipe(at).quantization.calibration.text == wb.studies.kept_texts[0].sha256


STATIC = bundled().replace({"quantization.scheme": "torchao-int8-static-smoothquant"})


def calibrated() -> dict:
    """Two layers, one with outliers; alpha 0.5 was the best of three."""
    alphas = [{"alpha": alpha, "kl": kl} for alpha, kl in ((0.25, 0.3), (0.5, 0.04), (0.75, 0.06))]
    names = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
    return {
        "scheme": "torchao-int8-static-smoothquant",
        "calibrated": {
            "text": "Emma",
            "sha256": "e" * 64,
            "samples": 16,
            "tokens": 256,
            "alpha": 0.5,
            "alpha_search": alphas,
            "seconds": 20.0,
        },
        "layers": [
            {"name": name, "absmax": absmax, "outlier_ratio": ratio, "tokens": 4096, "packed": True}
            for name, absmax, ratio in zip(names, (12.0, 900.0), (3.0, 450.0), strict=True)
        ],
    }


def test_calibrating_starts_and_shows_progress(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), STATIC).run()
    at.button(key="calibrate").click().run()
    assert calls(wb, "start_calibrate") == [(STATIC, None)]
    assert not [button for button in at.button if button.key == "calibrate"]


def test_what_calibrating_found(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.studies.newest["calibrate"] = fakes.study_job("calibrate", state="done", progress=None, result=calibrated())
    at = with_recipe(page("recipe"), STATIC).run()
    assert not at.exception
    assert "Alpha **0.5** loses least of 3 tried: KL 0.04 nats" in texts(at)
    assert "Outliers in 1 of 2 layers, most in **model.layers.1.mlp.down_proj**" in texts(at)
    assert "16 passages of 256 tokens of Emma, 20 s" in texts(at)


def test_schemes_that_are_not_calibrated_offer_no_calibration(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), NF4).run()
    assert not [button for button in at.button if button.key == "calibrate"]


def test_ranges_are_a_line_for_each_kind_and_the_chosen_alpha_is_marked() -> None:
    layers = [("model.layers.0.a.q_proj", 1.0), ("model.layers.0.m.up", 2.0), ("model.layers.7.a.q_proj", 3.0)]
    queries, ups = ranges_figure(layers).data
    assert (queries.name, list(queries.x), list(queries.y)) == ("q_proj", [0, 7], [1.0, 3.0])
    assert (ups.name, list(ups.x)) == ("up", [0])
    tried, chosen = alpha_figure([(0.75, 0.1), (0.25, 0.2)], 0.75).data
    assert (list(tried.x), list(chosen.x), list(chosen.y)) == ([0.25, 0.75], [0.75], [0.1])


def test_a_tiny_calibration_text_is_refused_with_the_reason(wb: fakes.FakeWorkbench, page: Page) -> None:
    at = with_recipe(page("recipe"), bundled().replace({"quantization.scheme": "torchao-int8-static"})).run()
    at.text_area(key="calibration-text-pasted").set_value("Too short.").run()
    at.button(key="calibration-text-add").click().run()
    assert any("at least 200 are needed" in error.value.replace("\\", "") for error in at.error)


def test_bubbles_grow_with_speed_and_zero_kl_has_a_place() -> None:
    slow = Bubble("a", "a" * 64, 100_000_000, 0.2, 10.0)
    fast = Bubble("b", "b" * 64, 400_000_000, 0.0, 40.0, chosen=True)
    second, first = effects_figure([slow, fast]).data
    assert second.marker.size == 2 * first.marker.size
    assert (first.x[0], first.y[0]) == (100.0, 0.2)
    assert 0 < second.y[0] < 0.2
    assert "0 (lossless)" in second.hovertemplate
    assert second.marker.line.width > first.marker.line.width


def test_groups_keep_their_order_and_kept_ones_are_apart() -> None:
    quantized, kept = groups_figure(["0", "1", "2"], [0.1, 0.3, 0.2], [False, True, False]).data
    assert (list(quantized.x), list(kept.x)) == (["0", "2"], ["1"])
    assert list(quantized.y) == [0.1, 0.2]


def test_the_engine_picker_offers_llama_cpp_and_hides_what_it_does_not_read(
    wb: fakes.FakeWorkbench, page: Page
) -> None:
    wb.machine = wb.machine.model_copy(update={"libraries": {**wb.machine.libraries, "xllamacpp": "2026.10"}})
    at = page("recipe").run()
    assert {"Dtype", "Attention"} <= labels(at)
    at.segmented_control(key="recipe-engine-0").set_value("llama.cpp").run()
    recipe = chosen_recipe(at)
    assert (recipe.engine, recipe.quantization.scheme, recipe.device) == ("llama.cpp", "gguf", "cpu")
    assert not {"Dtype", "Attention", "KV cache", "Quantization"} & labels(at)
    at.segmented_control(key="recipe-engine-0").set_value("transformers").run()
    assert chosen_recipe(at).quantization.scheme == "none"
    assert {"Dtype", "Attention"} <= labels(at)


def test_an_engine_that_is_not_here_is_listed_with_the_reason(wb: fakes.FakeWorkbench, page: Page) -> None:
    wb.machine = wb.machine.model_copy(update={"libraries": {"torch": "2.13"}})
    at = page("recipe").run()
    assert "llama.cpp** needs xllamacpp, which is not installed." in texts(at)
