"""Graphs: functions recorded on a CUDA device, to be launched again as a whole: one launch instead of hundreds.

A function reads what it depends on from tensors that never move, and asks the host for nothing. This file does not
know what is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["Graphs"]

_Result = TypeVar("_Result")


class Graphs:
    """Those recorded share their memory: what one gave is valid until any of them is replayed.

    Once all of them are gone, that memory is too: record no more with it.
    """

    def __init__(self) -> None:
        self._memory: Any = None

    def record(self, compute: Callable[[], _Result]) -> Callable[[], _Result]:
        """What replays ``compute`` and gives its tensors, with new values in them. Record the largest first."""
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries allocate and tune at their first calls, which a graph must not hold
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory):
            result = compute()

        def replay() -> _Result:
            graph.replay()
            return result

        return replay
