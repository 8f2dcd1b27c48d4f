"""torch's switches (TF32, autocast, cuDNN's search) in force while one model computes, and only then.

Two models in one process may differ in them, so they are set around each forward pass rather than once for the
process. This file does not know which switches a machine can honour (``conflicts.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from mcp_core.recipe import Switches

__all__ = ["apply_switches", "switches_in_force", "switches_on"]

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def apply_switches(model: PreTrainedModel, switches: Switches, device: torch.device) -> tuple[str, ...]:
    """Let the model compute with these switches from now on, whoever calls it; those found in force, in words."""
    if switches == Switches():
        return ()
    model.forward = _switched(model.forward, switches, device)
    with switches_on(switches, device):
        return switches_in_force(device)


@contextmanager
def switches_on(switches: Switches, device: torch.device) -> Iterator[None]:
    """The switches inside; what was before, after."""
    with ExitStack() as stack:
        if switches.tf32:
            stack.enter_context(_set(torch.backends.cuda.matmul, "allow_tf32"))
            stack.enter_context(_set(torch.backends.cudnn, "allow_tf32"))
        if switches.cudnn_benchmark:
            stack.enter_context(_set(torch.backends.cudnn, "benchmark"))
        if switches.autocast is not None:
            stack.enter_context(torch.autocast(device.type, _AUTOCAST[switches.autocast]))
        yield


def switches_in_force(device: torch.device) -> tuple[str, ...]:
    """What torch says of itself here and now, as ``tf32``, ``autocast bf16``, ``cudnn.benchmark``."""
    found = []
    if torch.backends.cuda.matmul.allow_tf32:
        found.append("tf32")
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
        found.append(f"autocast {next(name for name, each in _AUTOCAST.items() if each == dtype)}")
    if torch.backends.cudnn.benchmark:
        found.append("cudnn.benchmark")
    return tuple(found)


def _switched(forward: Callable[..., Any], switches: Switches, device: torch.device) -> Callable[..., Any]:
    @functools.wraps(forward)
    def with_switches(*args: Any, **kwargs: Any) -> Any:
        with switches_on(switches, device):
            return forward(*args, **kwargs)

    return with_switches


@contextmanager
def _set(backend: Any, name: str) -> Iterator[None]:
    before = getattr(backend, name)
    setattr(backend, name, True)
    try:
        yield
    finally:
        setattr(backend, name, before)
