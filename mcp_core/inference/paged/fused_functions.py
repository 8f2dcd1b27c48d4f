"""FusedFunctions: small functions of a model as one kernel each that torch compiles: norms, rotary, gating.

Eager, each of their operations reads and writes all of its values once; a long step waits for memory there.
Products and attention stay what they are, so any scheme of weights will do. A function is compiled once, for any
number of tokens, while steps are made ahead. While the engine serves nothing is compiled: a call that does not fit
is computed as the model does it. This file does not know what a step is.
"""

from __future__ import annotations

import functools
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch._dynamo import mark_dynamic, run
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError
from transformers.models.llama.modeling_llama import LlamaMLP

from mcp_core.models.load_errors import first_line

__all__ = ["FusedFunctions"]

_log = logging.getLogger(__name__)

_CANNOT = (TorchDynamoException, FailOnRecompileLimitHit, ConstraintViolationError)
_ROTARY = "apply_rotary_pos_emb"
_GATED_MLP = inspect.getsource(LlamaMLP.forward)  # word for word in many models


class FusedFunctions:
    """Those found in ``model``; in force only inside ``used``, and the model is as it was outside.

    As for a model's attention, one thread at a time may be inside.
    """

    def __init__(self, model: nn.Module) -> None:
        self._functions: dict[Any, _Function] = {}
        # Where a function is looked up, by which name, and what is found there inside.
        self._places: list[tuple[dict[str, Any], str, Callable[..., Any]]] = []
        for module in model.modules():
            self._find(module)

    @property
    def compiled(self) -> int:
        """How many functions torch has compiled; those that it could not are not among them."""
        return sum(function.is_compiled for function in self._functions.values())

    @contextmanager
    def used(self) -> Iterator[None]:
        """The model computes them fused inside."""
        before = [where.get(name) for where, name, _ in self._places]
        try:
            for where, name, fused in self._places:
                where[name] = fused
            yield
        finally:
            for (where, name, _), value in zip(self._places, before, strict=True):
                if value is None:  # a module finds its class's own again
                    where.pop(name, None)
                else:
                    where[name] = value

    def compile(self, compute: Callable[[int], object], counts: Sequence[int]) -> None:
        """Run ``compute`` for each number of tokens, which no size of the model may equal; compile what it calls.

        What torch cannot compile is said in the log and stays what it is. Raises what the model raises.
        """
        began_s = time.perf_counter()
        try:
            for count in counts:
                for function in self._functions.values():
                    function.compiles_for = count
                with self.used():
                    compute(count)
        finally:
            for function in self._functions.values():
                function.compiles_for = None
        words = "Prefill computes %d of %d small functions compiled; that took %.1f s."
        _log.info(words, self.compiled, len(self._functions), time.perf_counter() - began_s)

    def _find(self, module: nn.Module) -> None:
        kind = type(module)
        if kind.__name__.endswith("Attention"):
            self._find_rotary(getattr(inspect.unwrap(kind.forward), "__globals__", {}))
        if "forward" in module.__dict__:  # somebody's hook
            return
        if kind.__name__.endswith("RMSNorm"):
            norm = functools.partial(self._function(kind.forward), module)
            self._places.append((module.__dict__, "forward", norm))
        elif _source(kind.forward) == _GATED_MLP:
            gated = functools.partial(_gated_mlp, module, self._function(_gated))
            self._places.append((module.__dict__, "forward", gated))

    def _find_rotary(self, names: dict[str, Any]) -> None:
        function = names.get(_ROTARY)
        if isinstance(function, FunctionType) and function not in self._functions:
            self._places.append((names, _ROTARY, self._function(function)))

    def _function(self, eager: Callable[..., Any]) -> _Function:
        if eager not in self._functions:
            self._functions[eager] = _Function(eager)
        return self._functions[eager]


class _Function:
    """``eager``, as torch compiled it where that fits; it is compiled only while ``compiles_for`` a token count."""

    def __init__(self, eager: Callable[..., Any]) -> None:
        self._eager = eager
        self._compile = torch.compile(eager, fullgraph=True)
        self._known = run(eager)  # never compiles
        self.compiles_for: int | None = None
        self.is_compiled = False

    def __call__(self, *values: Any, **named: Any) -> Any:
        if self.compiles_for is not None and self._mark((*values, *named.values())):
            return self._compiling(values, named)
        return (self._known if self.is_compiled else self._eager)(*values, **named)

    def _mark(self, values: Sequence[Any]) -> bool:
        """Let any number of tokens do; whether this call is of all tokens (an expert's is not)."""
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        dims = [(each, dim) for each in tensors for dim, size in enumerate(each.shape) if size == self.compiles_for]
        for tensor, dim in dims:
            mark_dynamic(tensor, dim)
        return bool(dims)

    def _compiling(self, values: Sequence[Any], named: dict[str, Any]) -> Any:
        try:
            result = self._compile(*values, **named)
        except _CANNOT as error:
            cause = getattr(error, "inner_exception", error)  # a backend's own error stands inside
            _log.warning("torch cannot compile %s: %s", self._eager.__qualname__, first_line(cause))
            self._compile, self.is_compiled = self._eager, False
            return self._eager(*values, **named)
        self.is_compiled = self._compile is not self._eager
        return result


def _gated(activation: Any, gate: torch.Tensor, up: torch.Tensor) -> Any:
    return activation(gate) * up


def _gated_mlp(mlp: Any, gated: _Function, hidden: torch.Tensor) -> Any:
    """LlamaMLP's forward; gate before up, which may be a part of it (``joined_projections.py``)."""
    gate = mlp.gate_proj(hidden)
    return mlp.down_proj(gated(mlp.act_fn, gate, mlp.up_proj(hidden)))


@functools.cache
def _source(function: Any) -> str | None:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return None
