"""Where foreign errors of loading become ours: out of memory, corrupt files, unsupported models.

This file does not know what is being loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import core_model_loading

from mcp_core.errors import InvalidModel, McpError, OutOfMemory

__all__ = [
    "first_error_raised",
    "first_line",
    "foreign_errors",
    "is_out_of_memory",
    "memory_watched",
    "require_complete",
]

_MORE_MEMORY = "Choose bf16 or a quantization scheme, a smaller model, or a device with more free memory."
_COMPLETE = "Choose a complete checkpoint of a causal language model, with the config.json that belongs to it."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is torch's or Python's way to say that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's CPU allocator


def first_line(error: BaseException) -> str:
    """The first line of a foreign error's message, or its type where it has none; at most 200 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


@contextmanager
def foreign_errors(title: str, doing: str) -> Iterator[None]:
    """Map what torch, transformers and safetensors raise while ``doing`` something with a model.

    Raises OutOfMemory, or InvalidModel: corrupt, or not what transformers supports.
    """
    try:
        yield
    except McpError:
        raise
    except SafetensorError as error:
        raise InvalidModel(
            f"The weights of {title} are corrupt: {first_line(error)}", "Download the model again."
        ) from error
    except Exception as error:  # a malformed file surfaces as anything; tokenizers raises Exception itself
        if is_out_of_memory(error):
            raise OutOfMemory(f"Memory ran out while {doing}.", _MORE_MEMORY) from error
        raise InvalidModel(
            f"{title} cannot be loaded: {first_line(error)}",
            "Choose a causal language model that transformers supports.",
        ) from error


@contextmanager
def memory_watched(doing: str) -> Iterator[None]:
    """Raise OutOfMemory for what torch and Python say when memory ran out while ``doing`` something.

    One that was told already passes as it is.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"Memory ran out while {doing}.", _MORE_MEMORY) from error


@contextmanager
def first_error_raised() -> Iterator[None]:
    """Let the first error while weights are packed end ``from_pretrained``, as itself.

    transformers collects them all as text and then raises that there were some, so that neither the cause nor an
    exhausted memory can be told. Its function is replaced meanwhile: one load at a time.
    """
    before = core_model_loading.log_conversion_errors
    core_model_loading.log_conversion_errors = _let_through
    try:
        yield
    finally:
        core_model_loading.log_conversion_errors = before


@contextmanager
def _let_through(*_: object, **__: object) -> Iterator[None]:
    yield


def require_complete(info: Mapping[str, Any]) -> None:
    """Raise InvalidModel where transformers drew a weight at random: missing, or of another size.

    ``info`` is what ``from_pretrained`` returns with ``output_loading_info``.
    """
    missing = sorted(info["missing_keys"])
    if missing:
        raise InvalidModel(
            f"The checkpoint lacks {len(missing)} of the model's weights: {', '.join(missing[:3])}.", _COMPLETE
        )
    for name, stored, expected in sorted(info["mismatched_keys"]):
        raise InvalidModel(
            f"The checkpoint's {name} is {list(stored)}; by its config.json it is {list(expected)}.", _COMPLETE
        )
