"""A checkpoint loaded again, held against the model that was written: numbers, layers, logits.

Numbers are the same. In compressed-tensors answers are not: transformers rounds activations by other code, in
the model's dtype. A layer given the same inputs differs by far less than rounding changes it, but what falls on
the other side of a rounding step there is passed on, and after all layers two models of the same numbers are
about as far apart as either is from one that does not round. (Measured on SmolLM2-135M: static int8 in fp32,
every layer within 3e-7, logits 13 % apart, 25 % moved by rounding; in bf16 21 % and 22 %. Dynamic, whose steps
are finer, 4.5 % and 5.7 %.) So the bounds are what rounding itself does to this model. This file does not know
how a checkpoint is written or loaded (``saving.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from mcp_core.errors import InvalidModel
from mcp_core.memory.quantization.compressed import packed_layers

__all__ = ["Probe", "difference", "logits_of", "require_same_answers", "require_same_numbers"]

_PROBE_TOKENS = 32
# A scale rounded to the model's dtype and its product with a number: half a unit each, and no more.
_EXPANDED = 0.6
# Of a layer's output or of logits, beside what rounding activations changes: sums in another order.
_ARITHMETIC = 4.0
# Two independent roundings are apart by the root of the sum of both squares; the rest is for a small sample.
_APART = 1.25


@dataclass(frozen=True, slots=True)
class _Passed:
    """What went into a layer and came out, on the host; ``in_half`` where it rounds to half of int8's range, as
    static schemes on a CPU without VNNI do.
    """

    inputs: torch.Tensor
    outputs: torch.Tensor
    in_half: bool


class Probe:
    """What a model made of a fixed text: logits, and what went into and came out of each packed layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers: dict[str, _Passed] = {}
        hooks = [model.get_submodule(name).register_forward_hook(self._keep(name)) for name in packed_layers(model)]
        self.logits = logits_of(model)
        for hook in hooks:
            hook.remove()

    def _keep(self, name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            in_half = bool(getattr(module.weight, "reduce_range", False))
            self.layers[name] = _Passed(inputs[0].detach().cpu(), output.detach().cpu(), in_half)

        return hook


@torch.inference_mode()
def logits_of(model: PreTrainedModel) -> torch.Tensor:
    """Logits of a fixed text of random tokens, fp32, on the host."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (1, _PROBE_TOKENS), generator=torch.Generator().manual_seed(0))
    logits: torch.Tensor = model(ids.to(model.device), use_cache=False).logits
    return logits.float().cpu()


def difference(of: torch.Tensor, against: torch.Tensor) -> float:
    """Norm of the difference over the norm of the second."""
    return float((of - against).norm() / against.norm())


def require_same_numbers(folder: Path, again: PreTrainedModel) -> None:
    """Every tensor of ``model.safetensors`` is in ``again``, packed ones multiplied by their scales.

    Equal, or where transformers keeps scales in the model's dtype, within that rounding. ``again`` has run once: it
    expands at the first use. Raises InvalidModel.
    """
    held = dict(again.named_parameters()) | dict(again.named_buffers())
    for name, stored in _expanded(folder / "model.safetensors"):
        now = held.get(name)
        if now is None or now.shape != stored.shape:
            raise InvalidModel(f"Loaded again, the model has no {name} of that shape.", "Nothing was kept.")
        allowed = stored.abs() * torch.finfo(now.dtype).eps * _EXPANDED
        off = (now.detach().float().cpu() - stored).abs()
        if not bool((off <= allowed).all()):  # NaN too
            raise InvalidModel(f"Loaded again, {name} is not what was written.", "Nothing was kept.")


@torch.inference_mode()
def require_same_answers(before: Probe, again: PreTrainedModel) -> tuple[float, float]:
    """Each layer and the logits differ by no more than what rounding activations does. Raises InvalidModel.

    Returns how much the logits differ, and how much of them rounding alone changes, as ``difference`` does.
    """
    for name, passed in before.layers.items():
        _require_same_layer(name, passed, again)
    after = logits_of(again)
    unrounded = logits_of(_without_rounding(again))
    differs, rounding = difference(after, before.logits), difference(after, unrounded)
    apart = _APART * math.hypot(rounding, difference(before.logits, unrounded))
    if not differs <= apart + _arithmetic(again.dtype):
        raise InvalidModel(
            f"Loaded again, its logits differ by {differs:.1%}; rounding activations changes {rounding:.1%}.",
            "Nothing was kept.",
        )
    return differs, rounding


def _require_same_layer(name: str, passed: _Passed, again: PreTrainedModel) -> None:
    layer = again.get_submodule(name)
    given = passed.inputs.to(again.device)
    now, unrounded = layer(given).float().cpu(), functional.linear(given, layer.weight, layer.bias).float().cpu()
    before = passed.outputs.float()
    allowed = float((now - unrounded).norm())
    if passed.in_half:  # which no checkpoint can say
        allowed = _APART * math.hypot(allowed, float((before - unrounded).norm()))
    if not float((now - before).norm()) <= allowed + _arithmetic(given.dtype) * float(before.norm()):
        raise InvalidModel(
            f"Loaded again, {name} answers the same inputs otherwise: {difference(now, before):.1%} apart.",
            "Nothing was kept.",
        )


def _arithmetic(dtype: torch.dtype) -> float:
    return _ARITHMETIC * torch.finfo(dtype).eps


def _expanded(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor as the model has it when expanded, fp32."""
    with safe_open(file, "pt") as tensors:
        names = set(tensors.keys())
        for name in names:
            stored = tensors.get_tensor(name).float()
            scale = f"{name}_scale"
            yield name, stored * tensors.get_tensor(scale).float() if scale in names else stored


def _without_rounding(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, activations as they are from now on."""
    from compressed_tensors.quantization import disable_quantization

    model.apply(disable_quantization)
    return model
