"""ModelLookups: models looked up for pages, which ask again at every rerun; answers from the Hub are kept a while.

This file does not know how a model is looked up (``models/catalog.py``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from mcp_core.recipe import ModelRef

if TYPE_CHECKING:
    from mcp_core.models.architecture import ResolvedModel

__all__ = ["KEPT_S", "ModelLookups"]

KEPT_S = 300.0


class ModelLookups:
    """Thread-safe. What is on this machine is looked at every time: it is cheap, and it changes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: dict[tuple[ModelRef, str | None], tuple[float, ResolvedModel]] = {}

    def resolve(self, ref: ModelRef, hub_token: str | None = None) -> ResolvedModel:
        """As ``catalog.resolve``."""
        from mcp_core.models import catalog

        with self._lock:
            until_s, found = self._kept.get((ref, hub_token), (0.0, None))
        if found is not None and self._clock() < until_s:
            return found
        resolved = catalog.resolve(ref, hub_token=hub_token)
        if ref.source == "hub":
            with self._lock:
                self._kept[ref, hub_token] = (self._clock() + KEPT_S, resolved)
        return resolved

    def forget(self) -> None:
        """Drop what is kept: a download may have changed it."""
        with self._lock:
            self._kept.clear()
