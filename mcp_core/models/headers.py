"""Headers of weight files: which tensors a checkpoint holds, read without reading the weights.

This file does not know where checkpoints come from (``catalog.py``) or what their tensors weigh in memory.
"""

from __future__ import annotations

import functools
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_core.errors import InvalidModel
from mcp_core.models.architecture import Architecture, TensorInfo
from mcp_core.models.gguf_file import GgufFile, GgufTensor, read_gguf_file
from mcp_core.recipe import DType

__all__ = [
    "DTYPE_NAMES",
    "Checkpoint",
    "GgufHeader",
    "dtype_of",
    "read_folder",
    "read_gguf",
    "read_safetensors",
    "tensors_of_header",
]

_DOWNLOAD_AGAIN = "The file is damaged or incomplete: download or copy it again."
# The longest header that the safetensors library accepts.
_MAX_HEADER_BYTES = 100_000_000
# safetensors' name of a type -> ours.
DTYPE_NAMES: dict[str, DType] = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
# The number of bits in a type's name: 8 of F8_E4M3.
_BITS_OF_DTYPE = re.compile(r"[A-Z]+(\d+)")
# Buffers that old checkpoints saved beside their parameters; transformers computes them.
_BUFFERS = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias)$")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of safetensors: every tensor as stored, the files with them, and the type of most dense ones."""

    tensors: tuple[TensorInfo, ...]
    files: tuple[Path, ...]
    dtype: DType


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF says of itself. Tensors carry transformers' names and dense shapes.

    ``architecture.native_dtype`` is bf16, what it is dequantized to where its own values are the reference.
    ``type`` is llama.cpp's name of the type that most weights have, ``stored`` the same tensors with their bytes in
    the file.
    """

    title: str
    type: str
    architecture: Architecture
    chat_template: str | None
    stored: tuple[TensorInfo, ...]


def read_safetensors(path: Path) -> tuple[TensorInfo, ...]:
    """The tensors of one safetensors file. Raises InvalidModel when it is truncated or not safetensors."""
    return tensors_of_header(_safetensors_header(path))


def read_folder(folder: Path) -> Checkpoint:
    """The tensors of a folder with model.safetensors, or with shards listed in model.safetensors.index.json.

    Raises InvalidModel when there are none, a shard is missing, or one is damaged.
    """
    files = _weight_files(folder)
    headers = [_safetensors_header(file) for file in files]
    tensors = tuple(tensor for header in headers for tensor in tensors_of_header(header))
    return Checkpoint(tensors, files, dtype_of(entry["dtype"] for header in headers for entry in header.values()))


def dtype_of(stored: Iterable[str]) -> DType:
    """The type that most dense tensors have, of safetensors' names; fp32 where there is none."""
    counted = Counter(name for name in stored if name in DTYPE_NAMES)
    return DTYPE_NAMES[counted.most_common(1)[0][0]] if counted else "fp32"


def tensors_of_header(header: dict[str, Any]) -> tuple[TensorInfo, ...]:
    """The tensors among ``{name: {dtype, shape}}`` as they are stored, buffers left out."""
    return tuple(
        TensorInfo(name, tuple(entry["shape"]), _stored_bytes(str(entry["dtype"]), entry["shape"]))
        for name, entry in header.items()
        if not _BUFFERS.search(name)
    )


def _stored_bytes(dtype: str, shape: Iterable[int]) -> int:
    bits = _BITS_OF_DTYPE.match(dtype)
    return math.prod(shape) * (int(bits[1]) if bits else 8) // 8  # BOOL names none


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return (single,)
    if not index.is_file():
        raise InvalidModel(
            f"{folder} holds no model.safetensors.",
            "A model folder holds config.json, safetensors and tokenizer files.",
        )
    names = _shard_names(index)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InvalidModel(f"{folder} lacks {missing[0]}, one of its {len(names)} shards.", _DOWNLOAD_AGAIN)
    return tuple(folder / name for name in names)


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModel(f"{index} is not an index of shards.", _DOWNLOAD_AGAIN) from error
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InvalidModel(f"{index} names a shard outside its folder.", _DOWNLOAD_AGAIN)
    return names


def _safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """``{name: {dtype, shape}}``, checked against the file's length."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
            raise InvalidModel(f"{path} is not a safetensors file, or is cut off.", _DOWNLOAD_AGAIN)
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        entries = {
            name: {"dtype": str(entry["dtype"]), "shape": [int(n) for n in entry["shape"]]}
            for name, entry in header.items()
        }
        data_bytes = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InvalidModel(f"{path} has no readable safetensors header.", _DOWNLOAD_AGAIN) from error
    if size != 8 + length + data_bytes:
        raise InvalidModel(
            f"{path} is {size:,} bytes; its header says {8 + length + data_bytes:,}.", _DOWNLOAD_AGAIN
        )
    return entries


def read_gguf(path: Path) -> GgufHeader:
    """Sizes and tensors of a GGUF file. Raises InvalidModel: damaged, cut off, or an unsupported architecture."""
    stat = path.stat()
    return _read_gguf(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read_gguf(path: Path, size: int, mtime_ns: int) -> GgufHeader:
    """``size`` and ``mtime_ns`` tell a changed file from the one that was read; pages ask at every rerun."""
    file = read_gguf_file(path)
    name = str(file.fields.get("general.architecture", "unnamed"))
    if name not in _GGUF_MODEL_TYPES:
        raise InvalidModel(
            f"{path.name} is a GGUF of architecture {name}.",
            f"Those that can be loaded here: {', '.join(_GGUF_MODEL_TYPES)}.",
        )
    template = file.fields.get("tokenizer.chat_template")
    title = str(file.fields.get("general.name") or path.stem)
    try:
        architecture = _gguf_architecture(file, name)
    except KeyError as error:
        raise InvalidModel(f"{path} does not state its {error.args[0]}.", _DOWNLOAD_AGAIN) from error
    chat_template = template if isinstance(template, str) else None
    return GgufHeader(title, _most_common_type(file), architecture, chat_template, _stored(file))


def _stored(file: GgufFile) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(_transformers_name(each.name), each.shape, each.bytes) for each in _parameters(file))


def _parameters(file: GgufFile) -> Iterator[GgufTensor]:
    """Without rotary frequencies, which transformers computes."""
    return (tensor for tensor in file.tensors if not tensor.name.startswith("rope_freqs"))


def _most_common_type(file: GgufFile) -> str:
    weights: Counter[str] = Counter()
    for tensor in file.tensors:
        weights[tensor.type] += math.prod(tensor.shape)
    return weights.most_common(1)[0][0] if weights else "F32"


# llama.cpp's architecture -> transformers' model_type.
_GGUF_MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_GGUF_MODULES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_GGUF_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


def _gguf_architecture(file: GgufFile, name: str) -> Architecture:
    def field(key: str, default: int | None = None) -> int:
        value = file.fields.get(f"{name}.{key}", default)
        if not isinstance(value, int):
            raise KeyError(f"{name}.{key}")
        return value

    tensors = tuple(TensorInfo(_transformers_name(tensor.name), tensor.shape) for tensor in _parameters(file))
    heads, hidden = field("attention.head_count"), field("embedding_length")
    return Architecture(
        model_type=_GGUF_MODEL_TYPES[name],
        layers=field("block_count"),
        hidden=hidden,
        intermediate=field("feed_forward_length"),
        heads=heads,
        kv_heads=field("attention.head_count_kv", heads),
        head_dim=field("attention.key_length", hidden // heads if heads else None),
        vocab=field("vocab_size", file.fields.get("tokenizer.ggml.tokens")),
        context=field("context_length"),
        tied=all(tensor.name != "lm_head.weight" for tensor in tensors),
        native_dtype="bf16",
        tensors=tensors,
    )


def _transformers_name(name: str) -> str:
    """transformers' name of a GGUF tensor. Raises InvalidModel for one that these architectures do not have."""
    match = _GGUF_TENSOR.fullmatch(name)
    module = _GGUF_MODULES.get(match[2]) if match else None
    if match is None or module is None:
        raise InvalidModel(f"The GGUF holds a tensor {name}, which is not loaded here.", "Choose a dense model.")
    return f"model.layers.{match[1]}.{module}.{match[3]}" if match[1] else f"{module}.{match[3]}"
