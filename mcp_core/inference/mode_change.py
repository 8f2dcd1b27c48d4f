"""ModeChange: live fields that were asked for, and how the mode that serves takes them over or gives way.

Whatever goes wrong, something serves on and the asker is told. This file does not know who asks, or when no request
is in the way (``engine.py``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from mcp_core.errors import McpError
from mcp_core.inference.mode import Mode
from mcp_core.inference.step_errors import as_error
from mcp_core.models.load_errors import first_line
from mcp_core.recipe import Recipe

__all__ = ["ModeChange"]

_log = logging.getLogger(__name__)

Build = Callable[[Recipe], Mode]


@dataclass(slots=True, eq=False)
class ModeChange:
    """``done`` is set when ``recipe``'s live fields hold, or ``error`` why those of ``before`` still do."""

    before: Recipe
    recipe: Recipe
    timeout_s: float
    asked_s: float
    done: threading.Event = field(default_factory=threading.Event)
    error: McpError | None = None

    @property
    def is_swap(self) -> bool:
        """Whether it needs another mode."""
        return _mode_of(self.recipe) != _mode_of(self.before)

    def limit(self, mode: Mode) -> None:
        """New limits for a mode whose step has ended."""
        try:
            mode.set_limits(self.recipe.batching)
        except Exception as error:  # noqa: BLE001 - whatever it was, the old limits hold and the asker is told
            self._fail(error, "the limits could not be changed")

    def swap(self, mode: Mode, build: Build, check: Callable[[Mode], None]) -> Mode:
        """The mode that serves from now on. The old one's memory is given back first: both pools may not fit."""
        try:
            mode.close()
            return _checked(build(self.recipe), check)
        except Exception as error:  # noqa: BLE001 - whatever it was, the old mode serves on and the asker is told
            self._fail(error, "the batching mode could not be changed")
        return self._rebuilt(build)

    def _fail(self, error: Exception, words: str) -> None:
        """Without its frames: they would keep the memory of what was tried, and another pool would not fit."""
        _log.warning("%s: %s", words, first_line(error))
        self.error = as_error(error).with_traceback(None)
        self.error.__cause__ = self.error.__context__ = None

    def _rebuilt(self, build: Build) -> Mode:
        """The mode there was; where even that fails, one request at a time, which needs no memory of its own."""
        try:
            return build(self.before)
        except Exception as error:  # noqa: BLE001 - a worker that serves slowly is better than one that does not
            _log.warning("the batching mode could not be built again: %s", first_line(error))
            plain = {"batching.mode": "off", "prefix_cache": False, "compile": "off"}
            return build(self.before.replace(plain))


def _checked(mode: Mode, check: Callable[[Mode], None]) -> Mode:
    try:
        check(mode)
    except Exception:
        mode.close()
        raise
    return mode


def _mode_of(recipe: Recipe) -> tuple[str, bool]:
    return recipe.batching.mode, recipe.prefix_cache
