"""Graphs: functions recorded on a CUDA device, to be launched again as a whole: one launch instead of hundreds.

A function reads what it depends on from tensors that never move, and asks the host for nothing. This file does not
know what is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

__all__ = ["Graphs", "Recorded"]

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Recorded(Generic[_Result]):
    """``replay`` gives a function's tensors, with new values in them.

    It took ``replay_s`` and the function itself ``eager_s``, host and device, when it was recorded.
    """

    replay: Callable[[], _Result]
    replay_s: float
    eager_s: float


class Graphs:
    """Those recorded share their memory: what one gave is valid until any of them is replayed.

    Once all of them are gone, that memory is too: record no more with it. They are made for the device that is
    current at the first.
    """

    def __init__(self) -> None:
        self._memory: Any = None
        self._stream: Any = None
        self._made: list[torch.cuda.CUDAGraph] = []

    def record(self, compute: Callable[[], _Result]) -> Recorded[_Result]:
        """``compute``, to be replayed; it is run a few times. Record the largest first."""
        if self._memory is None:
            self._memory = torch.cuda.graph_pool_handle()
            # One for all: cuBLAS keeps 32 MB for each stream that it was called on, and torch's own is of whichever
            # device recorded first in this process.
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()  # libraries allocate and tune at their first calls, which a graph must not hold
            eager_s = _seconds(compute)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on: they read the device's memory, and have no part in this stream.
        with torch.cuda.graph(graph, pool=self._memory, stream=stream, capture_error_mode="thread_local"):
            result = compute()
        self._made.append(graph)

        def replay() -> _Result:
            graph.replay()
            return result

        replay()  # the first one brings the graph to the device
        return Recorded(replay, _seconds(replay), eager_s)

    def close(self) -> None:
        """Give their memory back, whoever still holds them: none is replayed after this."""
        if self._made:
            torch.cuda.synchronize()
        for graph in self._made:
            graph.reset()
        self._made = []


def _seconds(work: Callable[[], object]) -> float:
    """Until the device is done."""
    torch.cuda.synchronize()
    began_s = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began_s
