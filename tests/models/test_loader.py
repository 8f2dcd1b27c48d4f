from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.integrations.torchao import TorchAoQuantize

from mcp_core.errors import InvalidModel, OutOfMemory, RecipeError
from mcp_core.models import catalog, loader
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import ModelRef, Quantization, Recipe, SchemeName, ShapeSpec

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),  # LLM.int8 computes in fp16
]

PROMPT = torch.tensor([[104, 101, 108, 108, 111]])
PACKED: tuple[SchemeName, ...] = ("bnb-int8", "bnb-nf4", "bnb-fp4", "torchao-int8-weight-only")
TINY = ShapeSpec(layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, vocab=300, context=512)
PARAMETERS = 2 * 300 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64) + 64
ROTARY_BYTES = 2 * 8 * 4


def silent(stage: str, fraction: float | None, message: str) -> None:
    pass


def load(ref: ModelRef, **changes: Any) -> LoadedModel:
    recipe = Recipe(model=ref, device="cpu", **{"dtype": "fp32", **changes})
    return loader.load(catalog.resolve(ref), recipe, silent)


def folder_ref(folder: Path) -> ModelRef:
    return ModelRef(source="folder", id=str(folder))


def shape_ref(**changes: Any) -> ModelRef:
    return ModelRef(source="shape", id="custom", shape=TINY.model_copy(update=changes))


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model inside the test's model roots."""
    return shutil.copytree(tiny_llama, tmp_path / "tiny")


def status_bytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


@torch.inference_mode()
def logits(model: Any, ids: torch.Tensor = PROMPT) -> torch.Tensor:
    return model(ids).logits


def test_a_folder_gives_the_logits_of_plain_transformers(folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(logits(load(folder_ref(folder)).model), logits(plain))


def test_what_an_engine_needs_is_there(folder: Path) -> None:
    loaded = load(folder_ref(folder))
    assert loaded.vocab_size == 300
    assert loaded.max_context == 512
    assert loaded.eos_ids == {257}
    assert loaded.special_ids == {256, 257, 258}
    assert loaded.template_tokens == {"bos_token": "<|bos|>", "eos_token": "<|im_end|>"}
    assert loaded.chat_template is not None
    assert "<|im_start|>" in loaded.chat_template
    assert loaded.tokenizer.decode(loaded.tokenizer.encode("héllo").ids) == "héllo"
    assert loaded.weights_bytes == PARAMETERS * 4 + ROTARY_BYTES
    assert not loaded.random_weights
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_what_really_runs_is_read_back(folder: Path) -> None:
    effective = load(folder_ref(folder), dtype="bf16", attention="eager").effective
    assert (effective.device, effective.dtype, effective.scheme) == ("cpu", "bf16", "none")
    assert (effective.attention, effective.threads, effective.max_context) == ("eager", 1, 512)
    assert (effective.model_type, effective.parameters) == ("llama", PARAMETERS)
    assert (effective.quantized_modules, effective.skipped_modules) == (0, ())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementations_agree(folder: Path, attention: str) -> None:
    loaded = load(folder_ref(folder), attention=attention)
    assert loaded.effective.attention == attention
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.allclose(logits(loaded.model), logits(reference), atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_dtype_of_weights(folder: Path, dtype: str, expected: torch.dtype) -> None:
    loaded = load(folder_ref(folder), dtype=dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {expected}
    assert loaded.effective.dtype == dtype
    assert loaded.weights_bytes == PARAMETERS * expected.itemsize + ROTARY_BYTES


def test_weights_are_read_not_mapped(folder: Path) -> None:
    loaded = load(folder_ref(folder))
    assert str(folder) not in Path("/proc/self/maps").read_text()
    (folder / "model.safetensors").write_bytes(b"")
    assert logits(loaded.model).isfinite().all()


@pytest.mark.parametrize("scheme", PACKED)
@pytest.mark.parametrize("source", ["folder", "shape"])
def test_schemes_pack_every_linear_layer_but_the_output(folder: Path, scheme: SchemeName, source: str) -> None:
    ref = folder_ref(folder) if source == "folder" else shape_ref()
    loaded = load(ref, quantization=Quantization(scheme=scheme))
    assert loaded.effective.quantized_modules == 14
    assert loaded.effective.skipped_modules == ("lm_head",)
    assert loaded.effective.parameters == PARAMETERS
    assert loaded.weights_bytes < 0.75 * PARAMETERS * 4
    dense = logits(load(ref).model)
    packed = logits(loaded.model)
    assert 0.0 < (packed - dense).norm() / dense.norm() < (0.5 if "4" in scheme else 0.06)


def test_skipped_layers_stay_dense_and_are_named(folder: Path) -> None:
    options = Quantization(scheme="torchao-int8-weight-only", skip=("model.layers.0.mlp.*",))
    effective = load(folder_ref(folder), quantization=options).effective
    assert effective.quantized_modules == 11
    assert effective.skipped_modules == (
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
        "lm_head",
    )


def test_double_quantization_is_smaller(folder: Path) -> None:
    def size(*, double_quant: bool) -> int:
        options = Quantization(scheme="bnb-nf4", double_quant=double_quant)
        return load(shape_ref(hidden=256, intermediate=1024), quantization=options).weights_bytes

    assert size(double_quant=True) < size(double_quant=False)


def test_progress_rises_to_one_in_the_stage_of_the_recipe(folder: Path) -> None:
    heard: list[tuple[str, float | None, str]] = []
    ref = folder_ref(folder)
    recipe = Recipe(model=ref, device="cpu", quantization=Quantization(scheme="bnb-nf4"))
    loader.load(catalog.resolve(ref), recipe, lambda *event: heard.append(event))
    fractions = [fraction for _, fraction, _ in heard]
    assert {stage for stage, _, _ in heard} == {"quantize"}
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len(fractions) > 5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="freed blocks leave the process with glibc's mallopt")
def test_a_quantized_shape_is_never_dense_as_a_whole() -> None:
    ref = shape_ref(layers=8, hidden=1024, intermediate=2816)
    load(shape_ref(), dtype="bf16", quantization=Quantization(scheme="bnb-int8"))  # imports and first uses
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = status_bytes("VmRSS")
    loaded = load(ref, dtype="bf16", quantization=Quantization(scheme="bnb-int8"))
    dense_bytes = loaded.effective.parameters * 2
    assert status_bytes("VmHWM") - before < 0.8 * dense_bytes
    assert loaded.weights_bytes == pytest.approx(0.5 * dense_bytes, rel=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_a_shape_is_drawn_with_finite_varied_logits(tied: bool) -> None:
    loaded = load(shape_ref(tied=tied))
    drawn = logits(loaded.model)
    assert loaded.random_weights
    assert drawn.isfinite().all()
    assert 0.3 < drawn.std() < 3.0
    expected = PARAMETERS - (300 * 64 if tied else 0)
    assert loaded.effective.parameters == expected
    assert loaded.weights_bytes == expected * 4 + ROTARY_BYTES


def test_a_shape_is_the_same_each_time() -> None:
    assert torch.equal(logits(load(shape_ref()).model), logits(load(shape_ref()).model))


def test_a_shape_has_a_tokenizer_of_its_vocabulary() -> None:
    loaded = load(shape_ref(vocab=1000))
    assert loaded.vocab_size == loaded.tokenizer.get_vocab_size() == 1000
    assert loaded.eos_ids == {257}


def test_positions_matter_in_a_shape() -> None:
    """Rotary tables are computed, not drawn: moving a token changes what follows it."""
    model = load(shape_ref()).model
    assert not torch.allclose(
        logits(model, torch.tensor([[1, 2, 3]]))[0, -1], logits(model, torch.tensor([[2, 1, 3]]))[0, -1]
    )
    assert model.model.rotary_emb.inv_freq[0] == 1.0


def test_a_qwen3_like_folder_without_generation_config_loads(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    assert load(folder_ref(folder)).eos_ids == {257}


def test_every_end_of_reply_counts(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [257, 299]}))
    assert load(folder_ref(folder)).eos_ids == {257, 299}


def test_shards_load_as_one_file_does(folder: Path) -> None:
    whole = logits(load(folder_ref(folder)).model)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(load(folder_ref(folder)).model), whole)


def test_checkpoints_that_transformers_converts_load(folder: Path) -> None:
    """A mixture of experts is stored one matrix an expert and run as one stack, which stays dense and is named."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads)).eval()
    model.save_pretrained(folder)
    assert torch.equal(logits(load(folder_ref(folder)).model), logits(model))
    effective = load(folder_ref(folder), quantization=Quantization(scheme="bnb-int8")).effective
    assert effective.quantized_modules == 4
    assert "model.layers.0.mlp.experts" in effective.skipped_modules


def test_a_hub_model_is_downloaded_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(ref: ModelRef, token: str | None, on_progress: Callable[[float | None, str], None]) -> Path:
        assert (ref.id, token) == ("someone/tiny", "secret")
        on_progress(0.5, "half")
        return folder

    monkeypatch.setattr(loader.hub, "download", download)
    ref = ModelRef(source="hub", id="someone/tiny")
    resolved = replace(catalog.resolve(folder_ref(folder)), ref=ref, folder=None)
    heard: list[tuple[str, float | None, str]] = []
    loaded = loader.load(resolved, Recipe(model=ref, device="cpu"), lambda *event: heard.append(event), "secret")
    assert loaded.resolved.folder == folder
    assert heard[0] == ("download", 0.5, "half")


def test_missing_weights_are_refused_not_drawn(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InvalidModel, match=r"lacks 1 of the model's weights: model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load(folder_ref(folder))


def test_weights_of_another_size_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(63)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match=r"model\.norm\.weight is \[63\]; by its config\.json it is \[64\]"):
        load(folder_ref(folder))


def test_a_file_cut_off_after_it_was_resolved_is_refused(folder: Path) -> None:
    resolved = catalog.resolve(folder_ref(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InvalidModel):
        loader.load(resolved, Recipe(model=resolved.ref, device="cpu"), silent)


def test_a_folder_without_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InvalidModel, match=r"tokenizer\.json"):
        load(folder_ref(folder))


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidModel, match="tokenizer"):
        load(folder_ref(folder))


def test_an_unknown_model_type_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    resolved = catalog.resolve(folder_ref(folder))
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nonesuch"}))
    with pytest.raises(InvalidModel, match="nonesuch"):
        loader.load(resolved, Recipe(model=resolved.ref, device="cpu"), silent)


def test_a_skip_pattern_that_names_nothing_is_a_recipe_error(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"quantization\.skip"):
        load(folder_ref(folder), quantization=Quantization(scheme="bnb-nf4", skip=("nonesuch",)))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_running_out_of_memory_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(loader.quantization, "configure", fail)
    with pytest.raises(OutOfMemory, match="Memory ran out while loading tiny on cpu") as caught:
        load(folder_ref(folder))
    assert "quantization" in caught.value.hint


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB"), MemoryError(), ValueError("odd block")],
    ids=["cuda", "host", "another"],
)
@pytest.mark.parametrize("scheme", ["bnb-nf4", "torchao-int8-weight-only"])
def test_the_first_error_while_packing_is_the_one_that_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scheme: SchemeName, error: Exception
) -> None:
    """transformers collects such errors and tells none; the third weight's ends the load here, by its own name."""
    packed: list[str] = []

    def convert(self: Any, tensors: Any, *, full_layer_name: str, **rest: Any) -> Any:
        packed.append(full_layer_name)
        if len(packed) == 3:
            raise error
        return original(self, tensors, full_layer_name=full_layer_name, **rest)

    operation = {"bnb-nf4": Bnb4bitQuantize, "torchao-int8-weight-only": TorchAoQuantize}[scheme]
    original = operation.convert
    monkeypatch.setattr(operation, "convert", convert)
    kind = InvalidModel if isinstance(error, ValueError) else OutOfMemory
    with pytest.raises(kind) as caught:
        load(folder_ref(folder), quantization=Quantization(scheme=scheme))
    assert len(packed) == 3
    loading = f"Memory ran out while loading tiny on cpu and quantizing it to {scheme}"
    expected = "odd block" if kind is InvalidModel else loading
    assert expected in caught.value.message


class TestBundled:
    """The real model, prepared once for the session."""

    @pytest.fixture(autouse=True)
    def _shared(self, shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MCP_HOME", str(shared_home))

    def test_the_capital_of_france(self) -> None:
        loaded = load(ModelRef())
        ids = torch.tensor([loaded.tokenizer.encode("The capital of France is").ids])
        assert loaded.tokenizer.decode([int(logits(loaded.model, ids)[0, -1].argmax())]) == " Paris"
        assert loaded.eos_ids == {2}
        assert loaded.tokenizer.token_to_id("<|im_end|>") == 2
        assert loaded.chat_template is not None
        assert "<|im_start|>" in loaded.chat_template
        assert loaded.weights_bytes == pytest.approx(538e6, rel=0.01)
        assert loaded.effective.parameters == 134_515_008

    @pytest.mark.parametrize(
        ("scheme", "megabytes"),
        [("none", 269), ("bnb-int8", 164), ("bnb-nf4", 116), ("torchao-int8-weight-only", 164)],
    )
    def test_weights_in_bf16_weigh_what_was_measured(self, scheme: SchemeName, megabytes: int) -> None:
        loaded = load(ModelRef(), dtype="bf16", quantization=Quantization(scheme=scheme))
        assert loaded.weights_bytes == pytest.approx(megabytes * 1e6, rel=0.01)
        assert loaded.effective.quantized_modules == (0 if scheme == "none" else 210)
