"""Compilations: how long making decode steps took, and whether torch found what it compiled at an earlier time.

torch keeps it in a folder under MCP_HOME, which the worker names (``serving/worker.py``). This file does not know
what is compiled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch._dynamo.utils import counters

from mcp_core.generation import Preparation

__all__ = ["timed_preparation"]


@contextmanager
def timed_preparation() -> Iterator[Preparation]:
    """Filled in at the end of what is compiled or recorded inside."""
    preparation = Preparation()
    began_s, before = time.perf_counter(), _found_and_made()
    yield preparation
    found, made = (now - then for now, then in zip(_found_and_made(), before, strict=True))
    preparation.seconds = time.perf_counter() - began_s
    preparation.kept = made == 0 if found + made else None


def _found_and_made() -> tuple[int, int]:
    inductor = counters["inductor"]
    made = inductor["fxgraph_cache_miss"] + inductor["fxgraph_cache_bypass"]
    return inductor["fxgraph_cache_hit"], made
