"""Named sections of a worker's work, seen only while a profiler runs: queue, tokenization, sampling, ...

``profile_section`` costs a look at one name otherwise (tests/bench/profile.py). This file does not know torch: a
profiler puts its own way to mark a stretch of time here (``inference/profiling.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

__all__ = ["SECTIONS", "marked_by", "profile_section"]

# Every section there is, in the order in which a request meets them. The engine's steps are the trace's
# prefill and decode sections: which one a step was is known at its end.
SECTIONS = ("tokenization", "queue", "prefill", "decode", "sampling", "delivery", "detokenization")


class _Unmarked:
    """No profiler runs."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        pass


Marker = Callable[[str], AbstractContextManager[object]]

_UNMARKED = _Unmarked()
_marker: Marker | None = None


def profile_section(name: str) -> AbstractContextManager[object]:
    """The block inside is the section ``name`` of whatever profile is being recorded, in any thread.

    A section begins and ends in one thread: never ``await`` inside.
    """
    marker = _marker
    return _UNMARKED if marker is None else marker(name)


@contextmanager
def marked_by(marker: Marker) -> Iterator[None]:
    """Sections of every thread are marked by ``marker`` meanwhile."""
    global _marker  # noqa: PLW0603 - one process has one profiler
    _marker = marker
    try:
        yield
    finally:
        _marker = None
