from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from mcp_core.errors import InvalidModel
from mcp_core.models.headers import read_folder, read_gguf, read_safetensors


def shapes(tensors):
    return {tensor.name: tensor.shape for tensor in tensors}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": np.zeros((3, 5), np.float16), "b": np.zeros(7, np.float16)}, path)
    return path


def test_safetensors_lists_names_and_shapes(weights):
    assert shapes(read_safetensors(weights)) == {"a.weight": (3, 5), "b": (7,)}


def test_buffers_are_no_parameters(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"layers.0.rotary_emb.inv_freq": np.zeros(4), "w": np.zeros(2)}, path)
    assert shapes(read_safetensors(path)) == {"w": (2,)}


@pytest.mark.parametrize("kept", [0, 5, 20, -1])
def test_cut_safetensors_is_refused(weights, kept):
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(InvalidModel) as caught:
        read_safetensors(weights)
    assert caught.value.hint


def test_longer_file_than_its_header_says_is_refused(weights):
    weights.write_bytes(weights.read_bytes() + b"x")
    with pytest.raises(InvalidModel, match="its header says"):
        read_safetensors(weights)


@pytest.mark.parametrize(
    "header", [b"not json!", b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [2]}}', b"\xff\xfe"]
)
def test_garbage_header_is_refused(tmp_path, header):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InvalidModel):
        read_safetensors(path)


def test_huge_header_length_is_refused_unread(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(InvalidModel):
        read_safetensors(path)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_folder_joins_its_shards(tmp_path):
    save_file({"a": np.zeros(2, np.float16)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": np.zeros(3, np.float16)}, tmp_path / "model-00002-of-00002.safetensors")
    write_index(tmp_path, {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"})
    checkpoint = read_folder(tmp_path)
    assert shapes(checkpoint.tensors) == {"a": (2,), "b": (3,)}
    assert len(checkpoint.files) == 2
    assert checkpoint.dtype == "fp16"


def test_missing_shard_is_named(tmp_path):
    write_index(tmp_path, {"a": "model-00001-of-00001.safetensors"})
    with pytest.raises(InvalidModel, match="lacks model-00001-of-00001"):
        read_folder(tmp_path)


@pytest.mark.parametrize("weight_map", [{"a": "../outside.safetensors"}, {"a": 3}, "text"])
def test_index_may_name_only_files_beside_it(tmp_path, weight_map):
    save_file({"a": np.zeros(2)}, tmp_path.parent / "outside.safetensors")
    write_index(tmp_path, weight_map)
    with pytest.raises(InvalidModel):
        read_folder(tmp_path)


def write_gguf(path: Path, architecture: str = "qwen3", *, output: bool = True, extra: str | None = None) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(12)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(6)
    writer.add_token_list(["a", "b", "c"])
    writer.add_chat_template("{{ messages }}")
    tensors = {
        "token_embd.weight": (3, 8),
        "blk.0.attn_q.weight": (12, 8),
        "blk.0.attn_q_norm.weight": (6,),
        "blk.0.ffn_down.weight": (8, 12),
        "output_norm.weight": (8,),
        "rope_freqs.weight": (3,),
    }
    if output:
        tensors["output.weight"] = (3, 8)
    if extra:
        tensors[extra] = (2, 2)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_sizes_and_transformers_names(tmp_path):
    header = read_gguf(write_gguf(tmp_path / "tiny.gguf"))
    architecture = header.architecture
    assert (header.title, header.chat_template) == ("Tiny", "{{ messages }}")
    assert (architecture.model_type, architecture.layers, architecture.hidden) == ("qwen3", 1, 8)
    assert (architecture.intermediate, architecture.heads, architecture.kv_heads) == (12, 2, 1)
    assert (architecture.head_dim, architecture.vocab, architecture.context) == (6, 3, 128)
    assert not architecture.tied
    assert shapes(architecture.tensors) == {
        "model.embed_tokens.weight": (3, 8),
        "model.layers.0.self_attn.q_proj.weight": (12, 8),
        "model.layers.0.self_attn.q_norm.weight": (6,),
        "model.layers.0.mlp.down_proj.weight": (8, 12),
        "model.norm.weight": (8,),
        "lm_head.weight": (3, 8),
    }


def test_gguf_without_output_layer_is_tied(tmp_path):
    assert read_gguf(write_gguf(tmp_path / "tiny.gguf", output=False)).architecture.tied


def test_gguf_of_another_architecture_is_named(tmp_path):
    with pytest.raises(InvalidModel, match="architecture bert"):
        read_gguf(write_gguf(tmp_path / "tiny.gguf", "bert"))


def test_gguf_with_an_unknown_tensor_is_refused(tmp_path):
    with pytest.raises(InvalidModel, match="ffn_gate_exps"):
        read_gguf(write_gguf(tmp_path / "tiny.gguf", extra="blk.0.ffn_gate_exps.weight"))


@pytest.mark.parametrize("kept", [0, 3, 30, 0.5, -1])
def test_cut_gguf_is_refused(tmp_path, kept):
    path = write_gguf(tmp_path / "tiny.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InvalidModel) as caught:
        read_gguf(path)
    assert "download" in caught.value.hint
    assert "unpack" not in caught.value.message  # words of Python's that tell nobody anything


def test_gguf_garbage_is_refused(tmp_path):
    path = tmp_path / "noise.gguf"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(InvalidModel):
        read_gguf(path)


@pytest.mark.parametrize("item_type", [8, 9, 4])
def test_forged_array_length_ends_at_once(tmp_path, item_type):
    key = b"x"
    field = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, item_type, 2**62)
    path = tmp_path / "forged.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + field + bytes(64))
    with pytest.raises(InvalidModel):
        read_gguf(path)
