"""Sequence: one request on its way: its tokens, how many of them are computed, the pages that hold them.

This file does not know which sequences run together (``scheduler.py``) or how tokens are computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mcp_core.generation import GenerationRequest
from mcp_core.inference.paged.pages import PagePool, PrefixKey

__all__ = ["Sequence"]


@dataclass(slots=True, eq=False)
class Sequence:
    """``tokens`` are prompt and reply so far; those before ``computed`` have keys and values in ``pages``."""

    request: GenerationRequest
    tokens: list[int]
    computed: int = 0
    cached: int = 0
    preemptions: int = 0
    pages: list[int] = field(default_factory=list)
    _keys: list[PrefixKey] = field(default_factory=list)

    @classmethod
    def of(cls, request: GenerationRequest) -> Sequence:
        """A fresh one."""
        return cls(request, list(request.prompt))

    @property
    def output_count(self) -> int:
        """Tokens of the reply so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def remaining(self) -> int:
        """Tokens that have yet to be computed before the next one can be chosen."""
        return len(self.tokens) - self.computed

    def begin(self, pool: PagePool, root: PrefixKey) -> None:
        """Take over the pages of a known prefix. ``cached`` counts the prompt tokens it saves."""
        assert not self.pages
        self._keys = [root]
        self.pages = pool.find(self.tokens, root)
        self.computed = len(self.pages) * pool.page_size
        for start in range(0, self.computed, pool.page_size):
            self._keys.append(pool.key_after(self._keys[-1], self.tokens[start : start + pool.page_size]))
        if self.preemptions == 0:
            self.cached = self.computed

    def reserve(self, pool: PagePool, count: int) -> bool:
        """Pages for the next ``count`` tokens; False, and nothing taken, when there are too few."""
        needed = -(-(self.computed + count) // pool.page_size) - len(self.pages)
        if needed <= 0:
            return True
        taken = pool.take(needed)
        if taken is None:
            return False
        self.pages += taken
        return True

    def advance(self, pool: PagePool, count: int) -> None:
        """``count`` more tokens are computed; pages that became full are made findable."""
        self.computed += count
        while pool.share and len(self._keys) * pool.page_size <= self.computed:
            start = (len(self._keys) - 1) * pool.page_size
            key = pool.key_after(self._keys[-1], self.tokens[start : start + pool.page_size])
            pool.publish(self.pages[len(self._keys) - 1], key)
            self._keys.append(key)

    def end(self, pool: PagePool) -> None:
        """Give the pages back; what was computed is forgotten, the tokens stay."""
        pool.release(self.pages)
        self.pages, self._keys, self.computed = [], [], 0

    def slot(self, position: int, page_size: int) -> int:
        """Where in the pool the token at ``position`` is kept, counted in tokens."""
        return self.pages[position // page_size] * page_size + position % page_size
