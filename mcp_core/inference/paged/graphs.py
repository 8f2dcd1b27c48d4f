"""Graphs: functions recorded on a CUDA device, to be launched again as a whole: one launch instead of hundreds.

A function reads what it depends on from tensors that never move, and asks the host for nothing. This file does not
know what is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

__all__ = ["Graphs"]

_Result = TypeVar("_Result")


class Graphs:
    """Those recorded share their memory: what one gave is valid until any of them is replayed.

    Once all of them are gone, that memory is too: record no more with it. They are made for the device that is
    current at the first.
    """

    def __init__(self) -> None:
        self._memory: Any = None
        self._stream: Any = None
        self._made: dict[Callable[[], Any], torch.cuda.CUDAGraph] = {}

    def record(self, compute: Callable[[], _Result]) -> Callable[[], _Result]:
        """What replays ``compute`` and gives its tensors, with new values in them; it is run twice. Record the
        largest first."""
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
            # One for all: cuBLAS keeps 32 MB for each stream that it was called on, and torch's own is of whichever
            # device recorded first in this process.
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()  # libraries allocate and tune at their first calls, which a graph must not hold
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on: they read the device's memory, and have no part in this stream.
        with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
            result = compute()

        def replay() -> _Result:
            graph.replay()
            return result

        self._made[replay] = graph
        replay()  # the first one brings the graph to the device
        return replay

    def end(self, replays: Iterable[Callable[[], Any]]) -> None:
        """Give back what these hold, whoever still has them: none is replayed after this."""
        ending = list(replays)
        if ending:
            torch.cuda.synchronize()
        for replay in ending:
            self._made.pop(replay).reset()

    def close(self) -> None:
        """End all."""
        self.end(self._made)
