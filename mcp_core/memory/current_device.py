"""The device that CUDA calls without one go to: kernels of Triton, recorded graphs, libraries that name none.

CUDA keeps it per thread, and a new thread begins with the first device. This file does not know which threads there
are: whatever loads or computes calls it where its thread begins.
"""

from __future__ import annotations

import torch

__all__ = ["make_current"]


def make_current(device: torch.device | str) -> None:
    """From now on this thread's calls go to ``device``; nothing for a CPU, which has no such state."""
    wanted = torch.device(device)
    if wanted.type == "cuda":
        torch.cuda.set_device(wanted)
