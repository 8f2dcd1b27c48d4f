"""Recording a torch.profiler trace around a piece of work. Knows nothing of what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["trace_to"]


@contextmanager
def trace_to(path: Path | None) -> Iterator[None]:
    """Write a Chrome trace (JSON) of the work inside to ``path``; with None, do nothing."""
    if path is None:
        yield
        return
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        yield
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
