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
    """``tokens`` are prompt and reply as far as they are known; those before ``computed`` have keys and values in
    ``pages``.

    ``unread`` more tokens of the reply have been chosen on the device, the newest in its row ``row``. ``most`` is
    how many the reply may have.
    """

    request: GenerationRequest
    tokens: list[int]
    most: int
    computed: int = 0
    cached: int = 0
    preemptions: int = 0
    unread: int = 0
    row: int = 0
    ended: bool = False
    pages: list[int] = field(default_factory=list)
    _keys: list[PrefixKey] = field(default_factory=list)

    @classmethod
    def of(cls, request: GenerationRequest, longest: int) -> Sequence:
        """A fresh one; prompt and reply together have at most ``longest`` tokens."""
        return cls(request, list(request.prompt), min(request.max_tokens, longest - len(request.prompt)))

    @property
    def output_count(self) -> int:
        """Tokens of the reply that are known."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def chosen_count(self) -> int:
        """Tokens of the reply that have been chosen, known or not."""
        return self.output_count + self.unread

    @property
    def is_chosen(self) -> bool:
        """Whether the whole reply has been chosen, by its length: nothing more is computed."""
        return self.chosen_count >= self.most

    @property
    def remaining(self) -> int:
        """Tokens that have yet to be computed before the next one can be chosen."""
        return len(self.tokens) + self.unread - self.computed

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
        """``count`` more tokens are computed."""
        self.computed += count
        self._publish(pool)

    def resume(self, pool: PagePool, computed: int) -> None:
        """Its first ``computed`` tokens are in its pages again."""
        self.computed = computed
        self._publish(pool)

    def choose(self, row: int) -> None:
        """Its next token has been chosen on the device, in that row."""
        self.unread += 1
        self.row = row

    def read(self, pool: PagePool, token: int) -> None:
        """The oldest unread token is known now."""
        self.unread -= 1
        self.tokens.append(token)
        self._publish(pool)

    def _publish(self, pool: PagePool) -> None:
        """Make pages findable that are full of known tokens."""
        known = min(self.computed, len(self.tokens))
        while pool.share and len(self._keys) * pool.page_size <= known:
            start = (len(self._keys) - 1) * pool.page_size
            key = pool.key_after(self._keys[-1], self.tokens[start : start + pool.page_size])
            pool.publish(self.pages[len(self._keys) - 1], key)
            self._keys.append(key)

    def end(self, pool: PagePool) -> None:
        """Give the pages back; what was computed is forgotten, the known tokens stay."""
        pool.release(self.pages)
        self.pages, self._keys, self.computed = [], [], 0

    def slot(self, position: int, page_size: int) -> int:
        """Where in the pool the token at ``position`` is kept, counted in tokens."""
        return self.pages[position // page_size] * page_size + position % page_size
