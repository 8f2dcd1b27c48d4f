"""Bytes that calibrating a static scheme takes beside the dense weights. Pure arithmetic.

This file does not know how it is done (``memory/calibration.py``, ``memory/smoothquant.py``).
"""

from __future__ import annotations

from mcp_core.conflicts import options_read_by
from mcp_core.models.architecture import DTYPE_BYTES, Architecture
from mcp_core.recipe import Recipe

__all__ = ["JUDGED_POSITIONS", "calibrating_bytes", "held_out_count"]

# Passages that are run last, and their last positions, on which SmoothQuant's alpha is judged.
_MOST_HELD_OUT = 4
JUDGED_POSITIONS = 128
# fp32 rows over the vocabulary while one passage is compared: both sides, their softmaxes, the divergence.
_FP32_COPIES = 5


def held_out_count(samples: int) -> int:
    """How many of the calibration passages are for judging: a quarter, at least 1, at most 4."""
    return max(1, min(_MOST_HELD_OUT, samples // 4))


def calibrating_bytes(recipe: Recipe, architecture: Architecture) -> int:
    """Activations of one passage, or with a search for alpha of those that are held out, and two sets of logits."""
    options, item = recipe.quantization, DTYPE_BYTES[recipe.dtype]
    if "calibration" not in options_read_by(options.scheme):
        return 0
    wanted = options.calibration
    token = 3 * (architecture.hidden + architecture.intermediate) * item
    if "alpha" not in options_read_by(options.scheme) or options.alpha is not None:
        return wanted.tokens * token
    passages, positions = held_out_count(wanted.samples), min(JUDGED_POSITIONS, wanted.tokens)
    logits = positions * architecture.vocab * (2 * passages * item + _FP32_COPIES * DTYPE_BYTES["fp32"])
    return passages * wanted.tokens * token + logits
