from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mcp_core.errors import DiskFull, InvalidModel
from mcp_core.models import catalog, prepare, prepared
from mcp_core.recipe import ModelRef

pytestmark = pytest.mark.usefixtures("one_thread")

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCAB = 32, 64, 4, 2, 300


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "token_embd": (VOCAB, HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_up": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INTERMEDIATE),
    }
    return {f"{name}.weight": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write_gguf(path: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A one-layer Llama in fp32 with a byte-level tokenizer and a chat template."""
    from tiny_llama import byte_tokenizer

    vocabulary = byte_tokenizer().get_vocab()
    names = sorted(vocabulary, key=lambda name: vocabulary[name])
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*names, "ab", *(f"unused{index}" for index in range(VOCAB - len(names) - 1))])
    writer.add_token_types([1] * 256 + [3] * 3 + [1] * (VOCAB - 259))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", tensors())


def ref(path: Path) -> ModelRef:
    return ModelRef(source="gguf", id=str(path))


def silent(stage: str, fraction: float | None, message: str) -> None:
    pass


def test_weights_tokenizer_and_template_are_kept(gguf: Path) -> None:
    folder = prepare.prepare_gguf(catalog.resolve(ref(gguf)), silent)
    assert catalog.resolve(ref(gguf)).folder == folder
    stored, source = load_file(folder / "model.safetensors"), tensors()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert torch.equal(stored["model.layers.0.mlp.up_proj.weight"], source["blk.0.ffn_up.weight"])
    assert torch.equal(stored["model.embed_tokens.weight"], source["token_embd.weight"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, VOCAB)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert tokenizer.eos_token_id == 257


def test_it_is_made_once_and_said_once(gguf: Path) -> None:
    heard: list[str] = []
    resolved = catalog.resolve(ref(gguf))
    first = prepare.prepare_gguf(resolved, lambda stage, fraction, message: heard.append(stage))
    changed_s = (first / "model.safetensors").stat().st_mtime_ns
    assert prepare.prepare_gguf(resolved, lambda stage, fraction, message: heard.append(stage)) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == changed_s
    assert heard == ["prepare"]


def test_progress_bars_stay_quiet(gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare.prepare_gguf(catalog.resolve(ref(gguf)), silent)
    assert "it/s" not in capfd.readouterr().err


def test_a_gguf_cut_off_after_it_was_resolved_is_refused_and_leaves_nothing(gguf: Path, home: Path) -> None:
    resolved = catalog.resolve(ref(gguf))
    gguf.write_bytes(gguf.read_bytes()[: gguf.stat().st_size // 2])
    with pytest.raises(InvalidModel, match=r"tiny\.gguf cannot be loaded"):
        prepare.prepare_gguf(resolved, silent)
    assert prepared.list_models() == ()
    assert not [path for path in (home / "models").iterdir() if path.is_dir()]


def test_a_gguf_without_one_of_its_weights_is_refused(tmp_path: Path) -> None:
    weights = tensors()
    del weights["blk.0.ffn_up.weight"]
    path = write_gguf(tmp_path / "hole.gguf", weights)
    with pytest.raises(
        InvalidModel, match=r"lacks 1 of the model's weights: model\.layers\.0\.mlp\.up_proj\.weight"
    ):
        prepare.prepare_gguf(catalog.resolve(ref(path)), silent)


def test_a_disk_that_fills_is_named_and_leaves_nothing(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(DiskFull):
        prepare.prepare_gguf(catalog.resolve(ref(gguf)), silent)
    assert prepared.list_models() == ()
