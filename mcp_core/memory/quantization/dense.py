"""No quantization: weights stay in the Recipe's dtype.

This file does not know how weights are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mcp_core.recipe import Quantization

__all__ = ["keep_dense"]


def keep_dense(options: Quantization, dtype: torch.dtype, keep_dense: Sequence[str]) -> None:
    """Nothing for transformers to do; every weight is cast to ``dtype`` as it is read."""
