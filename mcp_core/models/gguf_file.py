"""The layout of a GGUF file: its fields and its list of tensors, walked without building arrays.

The ``gguf`` package's own reader takes 3 s for a vocabulary of 49,152 (it makes an array object of every token)
and never returns from a forged array length; its constants are used, its reader is not. This file does not know
what the fields mean (``headers.py``).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGUF_MAGIC, GGMLQuantizationType, GGUFValueType

from mcp_core.errors import InvalidModel

__all__ = ["GgufFile", "GgufTensor", "read_arrays", "read_gguf_file"]

_VERSIONS = (2, 3)
_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: llama.cpp's name of it and of its type, its shape as rows x columns (GGUF stores it reversed)."""

    name: str
    shape: tuple[int, ...]
    type: str
    bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """Fields by key (of an array only its length) and all tensors."""

    fields: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


def read_gguf_file(path: Path) -> GgufFile:
    """Fields and tensors of ``path``. Raises InvalidModel when it is not GGUF, damaged, or cut off."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _walk(data)
    except struct.error as error:  # a value that begins before the end of the file and ends behind it
        raise InvalidModel(
            f"{path} is not a readable GGUF file (it is cut off after {path.stat().st_size:,} bytes).",
            "The file is damaged or incomplete: download or copy it again.",
        ) from error
    except (ValueError, KeyError) as error:
        raise InvalidModel(
            f"{path} is not a readable GGUF file ({error}).",
            "The file is damaged or incomplete: download or copy it again.",
        ) from error


def read_arrays(path: Path, names: frozenset[str]) -> dict[str, list[Any]]:
    """The arrays of these fields, of a file that ``read_gguf_file`` has accepted; of strings or of numbers."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data, names)
        _, _, _, field_count = (cursor.scalar(each) for each in ("<I", "<I", "<Q", "<Q"))
        fields = dict(cursor.field() for _ in range(field_count))
    return {name: fields[name] for name in names if isinstance(fields.get(name), list)}


def _walk(data: mmap.mmap) -> GgufFile:
    cursor = _Cursor(data)
    magic, version = cursor.scalar("<I"), cursor.scalar("<I")
    if magic != GGUF_MAGIC:
        raise ValueError("it does not begin with GGUF")
    if version not in _VERSIONS:
        raise ValueError(f"version {version}")
    tensor_count, field_count = cursor.scalar("<Q"), cursor.scalar("<Q")
    fields = dict(cursor.field() for _ in range(field_count))
    entries = [cursor.tensor() for _ in range(tensor_count)]
    alignment = int(fields.get("general.alignment", GGUF_DEFAULT_ALIGNMENT))
    start = math.ceil(cursor.offset / alignment) * alignment if alignment > 0 else cursor.offset
    end = start + max((last for _, last in entries), default=0)
    if end > len(data):
        raise ValueError(f"{len(data):,} bytes, its header says at least {end:,}")
    return GgufFile(fields, tuple(tensor for tensor, _ in entries))


class _Cursor:
    """Reads values one after the other; running past the end raises struct.error or ValueError."""

    def __init__(self, data: mmap.mmap, whole: frozenset[str] = frozenset()) -> None:
        self.data = data
        self.offset = 0
        self._whole = whole  # fields whose arrays are read, not counted

    def scalar(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self.data, self.offset)
        self.offset += struct.calcsize(layout)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        start = self.offset
        self._skip(length)
        return self.data[start : self.offset].decode("utf-8")

    def field(self) -> tuple[str, Any]:
        key = self.string()
        kind = GGUFValueType(self.scalar("<I"))
        if kind == GGUFValueType.ARRAY and key in self._whole:
            return key, self._elements()
        return key, self._value(kind)

    def tensor(self) -> tuple[GgufTensor, int]:
        """A tensor, and where its data ends, counted from the start of all data."""
        name = self.string()
        dimensions = self.scalar("<I")
        if dimensions > 8:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = tuple(reversed([int(self.scalar("<Q")) for _ in range(dimensions)]))
        kind = GGMLQuantizationType(self.scalar("<I"))
        block, block_bytes = GGML_QUANT_SIZES[kind]
        begins, size = self.scalar("<Q"), math.prod(shape) // block * block_bytes
        return GgufTensor(name, shape, kind.name, size), begins + size

    def _value(self, kind: GGUFValueType) -> Any:
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind == GGUFValueType.ARRAY:
            return self._array()
        return self.scalar(_SCALARS[kind])

    def _elements(self) -> list[Any]:
        kind, length = GGUFValueType(self.scalar("<I")), int(self.scalar("<Q"))
        if kind == GGUFValueType.STRING:
            return [self.string() for _ in range(length)]
        layout = f"<{length}{_SCALARS[kind][1]}"
        values = struct.unpack_from(layout, self.data, self.offset)
        self._skip(struct.calcsize(layout))
        return list(values)

    def _array(self) -> int:
        kind, length = GGUFValueType(self.scalar("<I")), int(self.scalar("<Q"))
        if kind == GGUFValueType.STRING:
            for _ in range(length):
                self._skip(self.scalar("<Q"))
        elif kind == GGUFValueType.ARRAY:
            raise ValueError("an array of arrays")
        else:
            self._skip(length * struct.calcsize(_SCALARS[kind]))
        return length

    def _skip(self, count: int) -> None:
        self.offset += count
        if self.offset > len(self.data):
            raise ValueError("it ends inside its header")
