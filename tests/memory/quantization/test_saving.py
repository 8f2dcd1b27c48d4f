"""Checkpoints written by the quantize job, loaded again by transformers and by MCP's own catalog and loader."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from mcp_core.checkpoint_formats import SavedCheckpoint, why_not_saved
from mcp_core.errors import InputError, InvalidModel, RecipeError, UnsafeModel
from mcp_core.jobs import Job
from mcp_core.memory.quantization import checkpoint_check, checkpoint_job, saving, torchao_static
from mcp_core.models import catalog, loader
from mcp_core.recipe import ModelRef, Quantization, Recipe, ShapeSpec
from mcp_core.schemes import SCHEMES

sys.path.insert(0, str(Path(__file__).parents[2]))
from tiny_llama import build_tiny_llama

pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt")

SAVED_ON_CPU = [
    scheme.name
    for scheme in SCHEMES.values()
    if scheme.saved_as and not scheme.unsaved_because and scheme.bits and "cpu" in scheme.devices
]


@pytest.fixture(autouse=True)
def _silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "tell", lambda *_: None)


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    """The tiny Llama, inside this test's model roots."""
    return ModelRef(source="folder", id=str(build_tiny_llama(tmp_path / "tiny")))


def recipe_for(model: ModelRef, scheme: str, dtype: str = "bf16", **options: Any) -> Recipe:
    quantization = Quantization(scheme=scheme, **options)
    return Recipe(model=model, device="cpu", threads=1, dtype=dtype, quantization=quantization)


def write(recipe: Recipe, out: Path, fmt: str = "library") -> SavedCheckpoint:
    request = {"recipe": recipe.model_dump(mode="json"), "out": str(out), "format": fmt}
    outcome = asyncio.run(checkpoint_job.run(Job(out.parent, request, {})))
    return SavedCheckpoint.model_validate(outcome.result)


@torch.inference_mode()
def logits(recipe: Recipe) -> torch.Tensor:
    loaded = loader.load(catalog.resolve(recipe.model), recipe, lambda *_: None)
    return checkpoint_check.logits_of(loaded.model)


@pytest.mark.parametrize("scheme", SAVED_ON_CPU)
def test_a_saved_model_loads_from_the_catalog_with_identical_logits(scheme: str, model: ModelRef, tmp_path) -> None:
    recipe = recipe_for(model, scheme, skip=("model.layers.0.*",), double_quant=SCHEMES[scheme].double_quant)
    saved = write(recipe, tmp_path / "out")
    assert saved.logit_difference == 0.0
    assert saved.quantized_modules == 7
    assert saved.skip_reasons["model.layers.0.mlp.up_proj"] == "quantization.skip"
    assert saved.bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(saved.files)
    again = recipe_for(ModelRef(source="folder", id=saved.folder), "none")
    assert torch.equal(logits(again), logits(recipe))


@pytest.mark.parametrize(
    ("scheme", "fmt"), [("torchao-int8-weight-only", "library"), ("torchao-int8-dynamic", "compressed-tensors")]
)
def test_readers_of_transformers_4s_form_find_the_rotary_base(scheme: str, fmt: str, model, tmp_path) -> None:
    pytest.importorskip("compressed_tensors")
    file = Path(model.id) / "config.json"
    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rope_parameters": rope}))
    write(recipe_for(model, scheme), tmp_path / "out", fmt)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_parameters"] == rope
    assert written["rope_theta"] == 500_000.0


@pytest.mark.parametrize("scheme", ["torchao-int8-dynamic", "torchao-int8-static"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compressed_tensors_holds_the_very_weights_that_were_loaded(
    scheme: str, dtype: Any, model, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    recipe = recipe_for(model, scheme, dtype=dtype, skip=("*.o_proj",))
    saved = write(recipe, tmp_path / "out", "compressed-tensors")
    assert saved.logit_difference is not None
    assert saved.logit_rounding is not None
    assert 0 < saved.logit_difference < 1.8 * saved.logit_rounding + 4 * torch.finfo(TORCH[dtype]).eps
    assert saved.logit_rounding < 0.1
    name = "model.layers.1.mlp.up_proj"
    loaded = loader.load(catalog.resolve(model), recipe, lambda *_: None).model
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        expanded = (file.get_tensor(f"{name}.weight") * file.get_tensor(f"{name}.weight_scale")).to(TORCH[dtype])
        dense = file.get_tensor("model.layers.1.self_attn.o_proj.weight")
        names = set(file.keys())
    assert torch.equal(expanded, loaded.get_submodule(name).weight.dequantize())
    assert (f"{name}.input_scale" in names) == (scheme == "torchao-int8-static")
    assert dense.dtype == TORCH[dtype]
    plain = saving.reload(tmp_path / "out", TORCH[dtype], "cpu", "sdpa")
    checkpoint_check.logits_of(plain)  # it is expanded at the first use
    assert torch.equal(plain.get_submodule(name).weight, expanded)


@pytest.mark.parametrize(
    ("part", "factor", "message"),
    [
        ("weight", 1, "up_proj.weight is not what was written"),
        ("input_scale", 1.02, "up_proj.input_scale is not what was written"),
        ("dense", 1.02, "norm.weight is not what was written"),
    ],
)
def test_a_number_that_comes_back_otherwise_is_found_by_name(part, factor, message, model, tmp_path) -> None:
    again, _ = written_and_loaded(model, tmp_path)
    layer = again.get_submodule(LAYER)
    with torch.inference_mode():
        if part == "weight":  # one int8 step of one weight
            layer.weight[3, 5] += layer.weight_scale[3, 0]
        else:
            (again.model.norm.weight if part == "dense" else layer.input_scale).mul_(factor)
    with pytest.raises(InvalidModel, match=message):
        checkpoint_check.require_same_numbers(tmp_path / "out", again)


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1.02, False), (0.5, False)])
def test_a_layer_that_rounds_by_another_scale_is_found(factor, holds, model, tmp_path) -> None:
    again, probe = written_and_loaded(model, tmp_path)
    with torch.no_grad():
        again.get_submodule(LAYER).input_scale.mul_(factor)
    if holds:
        differs, rounding = checkpoint_check.require_same_answers(probe, again)
        assert differs <= rounding
        return
    with pytest.raises(InvalidModel, match=f"{LAYER} answers the same inputs otherwise"):
        checkpoint_check.require_same_answers(probe, again)


def test_a_cpu_that_rounds_in_half_the_range_may_write_too(model, tmp_path, monkeypatch) -> None:
    """Without VNNI static schemes keep 7 of 8 bits; compressed-tensors reads the numbers, and clips at twice the
    range that calibration saw. The probe goes beyond that range here."""
    pytest.importorskip("compressed_tensors")
    monkeypatch.setattr("torchao.utils._cpu_is_vnni_supported", lambda: False)
    pack = torchao_static.int8_weight
    narrow = lambda layer, seen, alpha: pack(layer, replace(seen, channels=seen.channels * 0.7), alpha)  # noqa: E731
    monkeypatch.setattr(torchao_static, "int8_weight", narrow)
    saved = write(recipe_for(model, "torchao-int8-static", dtype="fp32"), tmp_path / "out", "compressed-tensors")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.get_tensor(f"{LAYER}.weight").abs().max() <= 64
    assert saved.logit_difference is not None
    assert 0 < saved.logit_difference < 0.2


LAYER = "model.layers.1.mlp.up_proj"
TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}


def written_and_loaded(model: ModelRef, tmp_path: Path) -> tuple[Any, checkpoint_check.Probe]:
    """A static checkpoint as transformers has it, and what the model that was written made of the probe."""
    pytest.importorskip("compressed_tensors")
    recipe = recipe_for(model, "torchao-int8-static", dtype="fp32")
    loaded = loader.load(catalog.resolve(model), recipe, lambda *_: None)
    (tmp_path / "out").mkdir()
    saving.write_compressed(loaded, recipe.quantization.scheme, tmp_path / "out")
    again = saving.reload(tmp_path / "out", torch.float32, "cpu", "sdpa")
    checkpoint_check.logits_of(again)
    checkpoint_check.require_same_numbers(tmp_path / "out", again)
    return again, checkpoint_check.Probe(loaded.model)


@pytest.mark.parametrize(
    ("scheme", "fmt", "reason"),
    [
        ("torchao-int4-weight-only", "library", "CPU layout"),
        ("classic-dynamic", "library", "pickle"),
        ("none", "library", "nothing is quantized"),
        ("bnb-nf4", "compressed-tensors", "llmcompressor"),
        ("bnb-nf4", "gguf", "types of its own"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(scheme: str, fmt: str, reason: str, model, tmp_path) -> None:
    what = "An unquantized model" if scheme == "none" else scheme
    with pytest.raises(RecipeError, match=f"{what} cannot be written as {fmt}: .*{reason}") as caught:
        write(recipe_for(model, scheme), tmp_path / "out", fmt)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_int4_can_be_saved_on_a_gpu_and_random_weights_nowhere(model: ModelRef) -> None:
    assert why_not_saved(recipe_for(model, "torchao-int4-weight-only"), "cuda", "library") is None
    spec = ShapeSpec(layers=1, hidden=64, intermediate=64, heads=2, kv_heads=1, vocab=300)
    shape = ModelRef(source="shape", id="custom", shape=spec)
    refused = why_not_saved(recipe_for(shape, "bnb-nf4"), "cpu", "library")
    assert refused is not None
    assert "random" in refused[0]


def test_a_mixture_of_experts_is_refused_before_it_is_loaded(model: ModelRef, tmp_path, monkeypatch) -> None:
    resolved = catalog.resolve(model)
    mixture = replace(resolved, architecture=replace(resolved.architecture, model_type="qwen3_moe"))
    monkeypatch.setattr(catalog, "resolve", lambda *_, **__: mixture)
    with pytest.raises(RecipeError, match="mixture of experts"):
        write(recipe_for(model, "bnb-nf4"), tmp_path / "out")


def test_a_folder_in_use_is_left_alone(model: ModelRef, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write(recipe_for(model, "bnb-nf4"), tmp_path / "out")
    with pytest.raises(InputError, match="no folder"):
        write(recipe_for(model, "bnb-nf4"), tmp_path / "no" / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_checkpoint_that_loads_differently_is_not_kept(model: ModelRef, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint_job, "logits_of", lambda again: 1.5 * checkpoint_check.logits_of(again))
    with pytest.raises(InvalidModel, match=r"differ by 50\.00%"):
        write(recipe_for(model, "bnb-nf4"), tmp_path / "out")
    assert not any(path.name.lstrip(".").startswith("out") for path in tmp_path.iterdir())


def test_a_pickle_is_never_kept(tmp_path: Path) -> None:
    with pytest.raises(UnsafeModel, match="pickle"), saving.staged(tmp_path / "out", 0) as folder:
        (folder / "pytorch_model.bin").write_bytes(b"")
    assert not any(path.name.lstrip(".").startswith("out") for path in tmp_path.iterdir())


def test_gguf_is_made_by_the_converter_on_the_path(model: ModelRef, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match=r"converter .* is not on the PATH"):
        write(recipe_for(model, "none"), tmp_path / "out", "gguf")
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text(f"#!{sys.executable}\n" + STAND_IN)
    converter.chmod(0o755)
    saved = write(recipe_for(model, "none"), tmp_path / "out", "gguf")
    assert saved.files == ("out-Q8_0.gguf",)
    assert (tmp_path / "out" / "out-Q8_0.gguf").read_text() == f"{model.id} q8_0 {Path(model.id).name}"
    converter.write_text(f"#!{sys.executable}\nraise SystemExit('no such architecture')")
    with pytest.raises(InvalidModel, match="no such architecture"):
        write(recipe_for(model, "none"), tmp_path / "again", "gguf")
    assert not (tmp_path / "again").exists()


STAND_IN = """
import sys
folder, _, outtype, _, outfile, _, name = sys.argv[1:]
open(outfile, "w").write(f"{folder} {outtype} {name}")
"""
