"""Gradient checkpointing: activations thrown away in the forward pass and computed again in the backward pass.

It is a matter of training: without a backward pass nothing is kept that could be thrown away. This file does not
know how its effect is measured (``evaluation/experiment_job.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

__all__ = ["checkpointing", "trainable", "training_step"]


@contextmanager
def trainable(model: PreTrainedModel) -> Iterator[None]:
    """Every weight takes gradients inside, in training mode; frozen and in eval mode after, gradients dropped."""
    model.train()
    model.requires_grad_()
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.requires_grad_(requires_grad=False)
        model.eval()


@contextmanager
def checkpointing(model: PreTrainedModel, *, on: bool) -> Iterator[None]:
    """Checkpointing of every decoder layer inside, if ``on``."""
    if not on:
        yield
        return
    # transformers 5.23 says activation where earlier versions say gradient.
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{prefix}_checkpointing_disable")()
        model.disable_input_require_grads()  # left on by transformers, and every later loss would want gradients


def training_step(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Forward and backward on ``ids [batch, tokens]``, each token predicted from those before; the loss, nats.

    The gradients are dropped: no optimizer takes them, so the weights stay.
    """
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    return float(loss.detach())
