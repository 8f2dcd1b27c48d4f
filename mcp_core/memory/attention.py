"""Attention implementations: which ones a model's class has, and what a loaded model really runs.

This file does not know which ones a machine offers (``conflicts.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from mcp_core.errors import RecipeError
from mcp_core.recipe import Attention

__all__ = ["backend_in", "backend_words", "require_attention", "running_attention"]

T = TypeVar("T")

# What transformers asks of a class before it dispatches to an implementation; eager is always there.
_FLAGS: dict[Attention, str] = {
    "sdpa": "_supports_sdpa",
    "flex_attention": "_supports_flex_attn",
    "flash_attention_2": "_supports_flash_attn",
    "flash_attention_3": "_supports_flash_attn",
}

# The operators that PyTorch's scaled_dot_product_attention calls, by the kernel that it settled on.
_BACKENDS = {
    "_scaled_dot_product_flash_attention": "flash",
    "_scaled_dot_product_flash_attention_for_cpu": "flash",
    "_scaled_dot_product_efficient_attention": "mem-efficient",
    "_scaled_dot_product_cudnn_attention": "cudnn",
    "_scaled_dot_product_fused_attention_overrideable": "vendor",
}
# It calls none of them when it multiplies matrices instead, with all scores in memory.
_NO_KERNEL = "math"


def require_attention(model_class: type[PreTrainedModel], attention: Attention) -> None:
    """Raise RecipeError when this model's class has no such implementation."""
    flag = _FLAGS.get(attention)
    if flag is not None and not getattr(model_class, flag, False):
        there = ["eager", *(name for name, each in _FLAGS.items() if getattr(model_class, each, False))]
        raise RecipeError(f"attention: {model_class.__name__} has no {attention}.", f"It has: {', '.join(there)}.")


def running_attention(model: PreTrainedModel) -> str:
    """The implementation that the model's layers dispatch to, as transformers settled it at load."""
    return str(model.config.get_text_config(decoder=True)._attn_implementation)  # noqa: SLF001 - no public name


def backend_in(work: Callable[[], T], model: PreTrainedModel) -> tuple[T, str | None]:
    """Do the work of ``model``, and the sdpa backends that its operators show to have run; None where none did.

    torch.profiler would tell the same and keep 60 MB of the process for it.
    """
    if running_attention(model) != "sdpa":
        return work(), None
    calls, operators = _Calls(), _Operators()
    with calls, operators:
        result = work()
    found = {_BACKENDS[name] for name in operators.names & _BACKENDS.keys()}
    if calls.count > operators.kernels:
        found.add(_NO_KERNEL)
    return result, " and ".join(sorted(found)) or None


class _Calls(TorchFunctionMode):
    """How often scaled_dot_product_attention was called."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which operators ran, and how many of them were attention kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.names.add(name)
        self.kernels += name in _BACKENDS
        if name == "scaled_dot_product_attention":  # in inference mode it comes whole
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def backend_words(prefill: str | None, decode: str | None) -> str | None:
    """Both in one: ``flash``, or ``flash, decode math`` where they differ."""
    return prefill if prefill == decode else f"{prefill or 'none'}, decode {decode or 'none'}"
