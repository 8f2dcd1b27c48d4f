"""Checkpoints that come quantized, written here by their own libraries and loaded by ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, GptOssForCausalLM, TorchAoConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from mcp_core import hardware
from mcp_core.errors import InvalidModel, RecipeError
from mcp_core.models import catalog, footprint, loader
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import ModelRef, Quantization, Recipe

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
    # compressed-tensors and loguru start this themselves
    pytest.mark.filterwarnings("ignore::DeprecationWarning:compressed_tensors"),
]

PROMPT = torch.tensor([[104, 101, 108, 108, 111]])
BF16 = torch.bfloat16


def _torchao(name: str) -> TorchAoConfig:
    import torchao.quantization

    return TorchAoConfig(getattr(torchao.quantization, f"{name}Config")(set_inductor_config=False))


LIBRARIES = {
    "bitsandbytes nf4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=BF16
    ),
    "bitsandbytes fp4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=BF16
    ),
    "bitsandbytes int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "torchao Int8WeightOnly": lambda: _torchao("Int8WeightOnly"),
    "torchao Int8DynamicActivationInt8Weight": lambda: _torchao("Int8DynamicActivationInt8Weight"),
    "torchao Float8WeightOnly": lambda: _torchao("Float8WeightOnly"),
}


def silent(stage: str, fraction: float | None, message: str) -> None:
    pass


def load(folder: Path, **changes: Any) -> LoadedModel:
    ref = ModelRef(source="folder", id=str(folder))
    recipe = Recipe(model=ref, device="cpu", dtype="bf16", **changes)
    return loader.load(catalog.resolve(ref), recipe, silent)


def predicted_bytes(folder: Path, **changes: Any) -> int:
    ref = ModelRef(source="folder", id=str(folder))
    recipe = Recipe(model=ref, device="cpu", dtype="bf16", **changes)
    return footprint.estimate(recipe, catalog.resolve(ref), hardware.detect()).weights_bytes


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(PROMPT).logits


def with_tokenizer(folder: Path, source: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.mark.parametrize("label", LIBRARIES)
def test_a_saved_model_comes_back_with_the_same_logits(label: str, tiny_llama: Path, tmp_path: Path) -> None:
    saved = AutoModelForCausalLM.from_pretrained(
        tiny_llama, dtype=BF16, quantization_config=LIBRARIES[label](), device_map="cpu"
    )
    saved.save_pretrained(
        tmp_path / "saved"
    )  # before its first use: bitsandbytes repacks itself then, on some CPUs
    expected = logits(saved)
    folder = with_tokenizer(tmp_path / "saved", tiny_llama)
    loaded = load(folder)
    assert torch.equal(logits(loaded.model), expected)
    assert loaded.effective.scheme == f"checkpoint:{label}"
    assert (loaded.effective.quantized_modules, loaded.effective.skipped_modules) == (14, ("lm_head",))
    assert loaded.effective.skip_reasons == {"lm_head": "the checkpoint keeps it dense"}
    assert (loaded.effective.parameters, loaded.vocab_size) == (112_448, 300)
    assert loaded.weights_bytes == pytest.approx(predicted_bytes(folder), rel=0.02)
    assert loaded.weights_bytes < 0.75 * 112_448 * 2
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_its_host_memory_is_kept_as_for_the_scheme_that_packs_alike(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without, a decode step of int8 weights takes twice as long (``host_allocator.reuse_large_blocks``)."""
    label = "torchao Int8WeightOnly"
    saved = AutoModelForCausalLM.from_pretrained(
        tiny_llama, dtype=BF16, quantization_config=LIBRARIES[label](), device_map="cpu"
    )
    saved.save_pretrained(tmp_path / "saved")
    heard: list[str] = []
    for name in ("return_large_blocks", "reuse_large_blocks"):
        monkeypatch.setattr(loader, name, heard.append)
    load(with_tokenizer(tmp_path / "saved", tiny_llama))
    load(Path(shutil.copytree(tiny_llama, tmp_path / "dense")))
    assert heard == ["torchao-int8-weight-only"] * 2 + ["none"] * 2


class TestCompressedTensors:
    """Written by hand in the library's layout: symmetric scales a row."""

    @pytest.fixture(autouse=True)
    def _library(self) -> None:
        pytest.importorskip("compressed_tensors", minversion="0.15")

    @staticmethod
    def write(source: Path, folder: Path, activations: dict[str, Any] | None, dtype: torch.dtype) -> Path:
        """Every linear layer but the output in ``dtype`` with one bf16 scale a row; the rest bf16."""
        shutil.copytree(source, folder)
        tensors = {name: value.to(BF16) for name, value in load_file(folder / "model.safetensors").items()}
        largest = 127 if dtype == torch.int8 else torch.finfo(dtype).max
        for name in [each for each in tensors if each.endswith("_proj.weight")]:
            weight = tensors[name].float()
            scale = (weight.abs().amax(1, keepdim=True) / largest).to(BF16)
            scaled = (weight / scale.float()).clamp(-largest, largest)
            tensors[name] = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
            tensors[f"{name}_scale"] = scale
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        kind = {"num_bits": 8, "type": "int" if dtype == torch.int8 else "float", "symmetric": True}
        group = {
            "targets": ["Linear"],
            "weights": kind | {"strategy": "channel", "dynamic": False},
            "input_activations": activations and kind | activations,
        }
        form = "int-quantized" if dtype == torch.int8 else "float-quantized"
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": form,
            "ignore": ["lm_head"],
            "quantization_status": "compressed",
            "config_groups": {"group_0": group | {"format": form}},
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    @pytest.mark.parametrize(
        ("dtype", "label"), [(torch.int8, "w8a8"), (torch.float8_e4m3fn, "fp w8a8")], ids=["int8", "fp8"]
    )
    def test_it_computes_in_its_own_precision_expanded(
        self, tiny_llama: Path, tmp_path: Path, dtype: torch.dtype, label: str
    ) -> None:
        tokens = {"strategy": "token", "dynamic": True}
        folder = self.write(tiny_llama, tmp_path / "ct", tokens, dtype)
        loaded = load(folder)
        effective = loaded.effective
        assert effective.scheme == f"checkpoint:compressed-tensors {label}, expanded to bf16"
        assert (effective.quantized_modules, effective.skipped_modules) == (14, ("lm_head",))
        assert loaded.weights_bytes == pytest.approx(predicted_bytes(folder), rel=0.02)
        dense = logits(load(tiny_llama_copy(tiny_llama, tmp_path)).model).float()
        error = (logits(loaded.model).float() - dense).norm() / dense.norm()
        assert 0.005 < error < 0.25
        assert loaded.weights_bytes == pytest.approx(112_448 * 2, rel=0.02)

    def test_the_weights_are_codes_times_scales(self, tiny_llama: Path, tmp_path: Path) -> None:
        folder = self.write(tiny_llama, tmp_path / "ct", None, torch.int8)
        stored = load_file(folder / "model.safetensors")
        name = "model.layers.1.mlp.down_proj.weight"
        by_hand = stored[name].to(BF16) * stored[f"{name}_scale"]
        assert torch.equal(load(folder).model.get_parameter(name), by_hand)


def tiny_llama_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "dense")


def test_fp8_in_blocks_is_expanded_on_a_cpu(tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "fp8")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = {}
    for each in [each for each in tensors if each.endswith("_proj.weight")]:
        scale = torch.full((-(-tensors[each].shape[0] // 32), tensors[each].shape[1] // 32), 0.5)
        tensors[each] = tensors[each].to(torch.float8_e4m3fn)
        tensors[f"{each}_scale_inv"] = scale
        expected[each] = tensors[each].to(BF16) * 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [32, 32],
        "activation_scheme": "dynamic",
    }
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(folder)
    assert loaded.effective.scheme == "checkpoint:fp8 w8a8 in blocks, expanded to bf16"
    assert loaded.effective.quantized_modules == 0
    assert torch.equal(loaded.model.get_parameter(name), expected[name])
    assert loaded.weights_bytes == pytest.approx(predicted_bytes(folder), rel=0.01)


FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def test_mxfp4_experts_are_expanded_on_a_cpu(tiny_llama: Path, tmp_path: Path) -> None:
    """gpt-oss as it is published, tiny: blocks of 32 four-bit codes with a power of two each."""
    folder = shutil.copytree(tiny_llama, tmp_path / "mxfp4")
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 32, "num_local_experts": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300}
    torch.manual_seed(0)
    model = GptOssForCausalLM(GptOssConfig(**sizes, **heads, sliding_window=16)).to(BF16)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    expected: dict[str, torch.Tensor] = {}
    for name in [each for each in tensors if each.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        codes = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(122, 128, (experts, outputs, inputs // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": codes, f"{name}_scales": scales}
        pairs = torch.stack([FP4_VALUES[(codes & 15).long()], FP4_VALUES[(codes >> 4).long()]], dim=-1)
        values = pairs.flatten(-2) * torch.exp2(scales.float() - 127)[..., None]
        expected[name] = values.flatten(-2).transpose(1, 2).to(BF16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(folder, attention="eager")
    assert loaded.effective.scheme == "checkpoint:mxfp4 w4a16, expanded to bf16"
    assert len(expected) == 4
    for name, values in expected.items():
        assert torch.equal(loaded.model.get_parameter(name), values), name
    assert loaded.effective.parameters == loaded.model.num_parameters()
    assert loaded.weights_bytes == pytest.approx(predicted_bytes(folder, attention="eager"), rel=0.02)
    assert logits(loaded.model).isfinite().all()


@pytest.mark.parametrize(
    ("label", "part"),
    [
        ("bitsandbytes nf4", "up_proj.weight.absmax"),
        ("bitsandbytes nf4", "up_proj.weight"),
        ("bitsandbytes int8", "up_proj.SCB"),
        ("torchao Int8WeightOnly", "up_proj._weight_qdata"),
        ("torchao Int8WeightOnly", "up_proj._weight_scale"),
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_refused(label: str, part: str, tiny_llama: Path, tmp_path: Path) -> None:
    saved = AutoModelForCausalLM.from_pretrained(
        tiny_llama, dtype=BF16, quantization_config=LIBRARIES[label](), device_map="cpu"
    )
    saved.save_pretrained(tmp_path / "saved")
    folder = with_tokenizer(tmp_path / "saved", tiny_llama)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = file.metadata()
    del tensors[f"model.layers.1.mlp.{part}"]
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    with pytest.raises(InvalidModel):
        load(folder)


def quantized_folder(tiny_llama: Path, tmp_path: Path, *, packed: bool = True, **document: Any) -> Path:
    """A config that says quantized, and files with one packed weight (or none) among dense ones."""
    folder = shutil.copytree(tiny_llama, tmp_path / "quantized")
    if packed:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.mlp.up_proj.qweight"] = torch.zeros(8, 128, dtype=torch.int32)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": document}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(("method", "library"), [("gptq", "gptqmodel"), ("awq", "gptqmodel")])
def test_what_needs_a_library_names_it(tiny_llama: Path, tmp_path: Path, method: str, library: str) -> None:
    if library in hardware.detect().libraries:
        pytest.skip(f"{library} is installed")
    folder = quantized_folder(tiny_llama, tmp_path, quant_method=method, bits=4)
    with pytest.raises(RecipeError, match=f"{method} w4a16 needs {library}"):
        load(folder)
    with pytest.raises(RecipeError, match=f"{method} w4a16 needs {library}"):
        predicted_bytes(folder)


def test_a_scheme_on_top_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = quantized_folder(tiny_llama, tmp_path, load_in_8bit=True)
    with pytest.raises(RecipeError, match="already quantized"):
        load(folder, quantization=Quantization(scheme="bnb-nf4"))


def test_a_config_without_its_packed_tensors_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = quantized_folder(tiny_llama, tmp_path, packed=False, quant_method="bitsandbytes", load_in_4bit=True)
    with pytest.raises(InvalidModel, match="hold no packed weights"):
        load(folder)


def test_transformers_own_table_is_left_as_it_was(tiny_llama: Path, tmp_path: Path) -> None:
    before = dict(AUTO_QUANTIZER_MAPPING)
    load(tiny_llama_copy(tiny_llama, tmp_path))
    assert before == AUTO_QUANTIZER_MAPPING
