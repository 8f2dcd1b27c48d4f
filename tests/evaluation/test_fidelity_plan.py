"""What a Recipe is compared with, and what is answered without measuring."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mcp_core import hardware, texts
from mcp_core.errors import InputError
from mcp_core.evaluation.fidelity_plan import _compared_with, make_plan, original_named
from mcp_core.evaluation.fidelity_text import builtin_evaluation
from mcp_core.models.stored_quantization import StoredQuantization
from mcp_core.presets import bundled, recipe_preset
from mcp_core.recipe import ModelRef

MACHINE = hardware.detect()
NF4 = StoredQuantization("bitsandbytes", "bitsandbytes nf4", 4, ("bitsandbytes",))
PROSE = "It was a quiet evening, and nobody in the village expected anything to happen. " * 20


def plan(changes=None, **options):
    return make_plan(bundled().replace({"device": "cpu", "dtype": "bf16", **(changes or {})}), MACHINE, **options)


def test_the_reference_is_the_same_model_unquantized_in_its_native_dtype():
    made = plan({"quantization.scheme": "bnb-nf4", "dtype": "fp32", "attention": "eager", "kv.kind": "static"})
    reference = made.reference
    assert (reference.quantization.scheme, reference.dtype, reference.kv.kind) == ("none", "bf16", "dynamic")
    assert (reference.attention, reference.device) == ("eager", "cpu")
    assert "dequantized from GGUF, bf16, unquantized, eager" in made.reference_title
    assert plan(reference_dtype="fp32").reference.dtype == "fp32"


def test_kv_kinds_are_judged_while_decoding():
    assert plan().path == "prefill"
    assert (plan({"kv.kind": "static"}).path, plan({"kv.kind": "static"}).prefill_tokens) == ("decode", 128)
    sliding = plan({"kv.kind": "sliding", "kv.window": 300})
    assert (sliding.path, sliding.prefill_tokens) == ("decode", 300)
    assert plan({"kv.kind": "sliding"}).prefill_tokens == 512


def test_the_key_is_of_model_numerics_reference_and_text():
    same = plan({"quantization.scheme": "bnb-nf4", "dtype": "bf16"}).key
    assert same == plan({"quantization.scheme": "bnb-nf4", "dtype": "bf16", "threads": 1}).key  # changes no logits
    kept = texts.add("mine.txt", PROSE.encode())
    others = (
        plan({"quantization.scheme": "bnb-fp4", "dtype": "bf16"}).key,
        plan({"quantization.scheme": "bnb-nf4", "dtype": "bf16"}, reference_dtype="fp32").key,
        plan({"quantization.scheme": "bnb-nf4", "dtype": "bf16"}, text_sha256=kept.sha256).key,
    )
    assert len({same, *others}) == 4


def test_every_candidate_shares_the_reference_s_noise_floor():
    assert plan({"quantization.scheme": "bnb-nf4"}).floor_key == plan({"quantization.scheme": "bnb-int8"}).floor_key
    assert plan().floor_key != plan(reference_dtype="fp32").floor_key
    assert plan().floor_key != plan({"kv.kind": "static"}).floor_key  # another path


def test_random_weights_cannot_be_judged():
    made = make_plan(recipe_preset("llama-2-7b-shape").replace({"device": "cpu"}), MACHINE)
    told = made.without_measuring()
    assert told.status == "not-measurable"
    assert "random weights" in told.reason
    assert told.kl is None
    assert told.key


def test_a_recipe_that_loses_nothing_says_by_which_test():
    told = plan({"kv.kind": "off", "dtype": "bf16"}).without_measuring()
    assert told.status == "lossless-by-test"
    assert "test_lossless_kv_kinds_predict_as_dynamic_does" in told.reason
    assert plan({"dtype": "bf16"}).without_measuring() is None
    quantized = plan({"kv.kind": "off", "quantization.scheme": "bnb-nf4", "dtype": "bf16"})
    assert quantized.without_measuring() is None
    assert (quantized.path, quantized.candidate.kv.kind) == ("prefill", "dynamic")
    assert any("scored with kv.kind dynamic" in note for note in quantized.notes(25))


def test_notes_say_what_the_figures_do_not():
    few = plan().notes(12)
    assert few[0] == "screening only: 12 documents"
    assert any("proves the instrument and not the scheme" in note for note in few)
    assert not any("screening" in note for note in plan().notes(20))
    artefact = plan({"quantization.scheme": "torchao-int4-weight-only", "quantization.group_size": 32})
    assert any("Q4_1" in note for note in artefact.notes(25))
    other = plan({"quantization.scheme": "torchao-int4-weight-only", "quantization.group_size": 64})
    assert not any("Q4_1" in note for note in other.notes(25))
    served = plan({"batching.mode": "continuous"}).notes(25)
    assert any("not with the pages of continuous batching" in note for note in served)
    assert any("to check the instrument" in note for note in plan(reference_dtype="fp32").notes(25))


def test_text_that_the_scheme_was_calibrated_on_is_refused():
    emma = texts.builtin_calibration().documents[3].text
    kept = texts.add("emma.txt", emma.encode())
    static = {"quantization.scheme": "torchao-int8-static", "dtype": "bf16"}
    if bundled().replace({"device": "cpu", **static}).conflicts(MACHINE):
        pytest.skip("the scheme cannot run here")
    with pytest.raises(InputError, match="stand in the calibration text"):
        plan(static, text_sha256=kept.sha256)
    assert plan(static).text == builtin_evaluation()
    assert plan(text_sha256=kept.sha256).text == kept  # nothing was calibrated


def test_an_unknown_text_is_refused():
    with pytest.raises(InputError, match="no text"):
        plan(text_sha256="0" * 64)


def test_what_llama_cpp_serves_is_judged_by_its_server_against_the_reference_of_all_engines():
    pytest.importorskip("xllamacpp")
    made = make_plan(recipe_preset("bundled-llama.cpp"), MACHINE)
    assert made.without_measuring() is None
    assert (made.path, made.candidate.engine, made.reference.engine) == ("endpoint", "llama.cpp", "transformers")
    on_transformers = make_plan(bundled().replace({"device": "cpu"}), MACHINE)
    assert made.reference.numerics_key == on_transformers.reference.numerics_key
    assert made.reference_title == on_transformers.reference_title
    assert made.key != on_transformers.key
    assert made.floor_key != on_transformers.floor_key  # by the top tokens, not by the whole vocabulary
    notes = " ".join(made.notes(25))
    assert "what the file lost against the model that it was made of is not in these figures" in notes
    assert "Q4_1" in notes
    assert "pages of continuous batching" not in notes


def test_a_checkpoint_that_came_quantized_is_judged_against_its_original():
    dense = plan()
    packed = replace(dense, resolved=replace(dense.resolved, title="nf4", quantized=NF4))
    told = packed.without_measuring()
    assert told.status == "not-measurable"
    assert "Name the checkpoint that it was made of" in told.reason
    against = _compared_with(dense.resolved, packed, None)
    assert against.without_measuring() is None
    assert against.reference_title == dense.reference_title
    assert "compared with SmolLM2-135M-Instruct, named as the model that nf4 was made of" in against.notes(25)
    assert against.floor_key == dense.floor_key  # the reference is the same


def test_the_original_is_a_part_of_the_key():
    dense = plan()
    other = replace(dense.resolved, ref=dense.resolved.ref.model_copy(update={"sha256": "c" * 64}))
    against = _compared_with(other, dense, None)
    assert len({dense.key, against.key}) == 2
    assert against.floor_key != dense.floor_key
    unknown = replace(dense.resolved, ref=dense.resolved.ref.model_copy(update={"sha256": None}))
    assert _compared_with(unknown, dense, None).key is None


def test_what_cannot_be_an_original_is_refused():
    dense = plan()
    with pytest.raises(InputError, match=r"cannot be the original of .*: it comes quantized itself"):
        _compared_with(replace(dense.resolved, title="nf4", quantized=NF4), dense, None)
    other = replace(dense.resolved, title="other", architecture=replace(dense.resolved.architecture, vocab=7))
    with pytest.raises(InputError, match=r"cannot be the original of .*: it has 7 tokens, the other 49,152"):
        _compared_with(other, dense, None)


def test_an_original_is_named_as_people_name_models(tmp_path):
    assert original_named("bundled") == ModelRef()
    assert original_named(str(tmp_path)) == ModelRef(source="folder", id=str(tmp_path))
    assert original_named("/models/it.gguf") == ModelRef(source="gguf", id="/models/it.gguf")
    assert original_named("Qwen/Qwen3-0.6B") == ModelRef(source="hub", id="Qwen/Qwen3-0.6B")
