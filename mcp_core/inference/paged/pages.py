"""PagePool: which page of the key/value pool holds which tokens: free, in use, or kept for a shared prefix.

A full page is known by the digest of its tokens and all tokens before it, so equal prefixes share pages. Pages
that nobody uses are kept until their place is needed, the longest unused first. Pure bookkeeping: this file does
not know tensors, requests or time.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["PagePool", "PrefixKey"]

PrefixKey = bytes


@dataclass(slots=True)
class _Page:
    users: int = 0
    key: PrefixKey | None = None


@dataclass(slots=True)
class PagePool:
    """``pages`` pages of ``page_size`` tokens. Page 0 is never given out: padding writes there.

    ``share`` keeps full pages findable by their content. One thread at a time.
    """

    pages: int
    page_size: int
    share: bool = True
    evictions: int = field(default=0, init=False)
    _pages: list[_Page] = field(init=False)
    _free: list[int] = field(init=False)
    _kept: OrderedDict[int, None] = field(default_factory=OrderedDict, init=False)  # unused, content still known
    _by_key: dict[PrefixKey, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        assert self.pages >= 2
        self._pages = [_Page() for _ in range(self.pages)]
        self._free = list(range(self.pages - 1, 0, -1))

    @property
    def capacity(self) -> int:
        """Pages that can be in use at once."""
        return self.pages - 1

    @property
    def available(self) -> int:
        """Pages that could be given out now."""
        return len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Pages that sequences hold now."""
        return self.capacity - self.available

    @property
    def kept(self) -> int:
        """Pages that nobody uses but whose prefix may be asked for again."""
        return len(self._kept)

    def users(self, page: int) -> int:
        """How many hold it now."""
        return self._pages[page].users

    def root(self, tenant: str = "") -> PrefixKey:
        """The key before the first page; different tenants never share."""
        return hashlib.blake2b(tenant.encode(), digest_size=16).digest()

    def key_after(self, before: PrefixKey, tokens: Sequence[int]) -> PrefixKey:
        """The key of a full page that holds ``tokens`` after everything that ``before`` stands for."""
        assert len(tokens) == self.page_size
        return hashlib.blake2b(array("q", tokens).tobytes(), key=before, digest_size=16).digest()

    def find(self, tokens: Sequence[int], root: PrefixKey) -> list[int]:
        """Pages that hold the longest known prefix of ``tokens``, now also used by the caller.

        At least one token is left out: its logits have to be computed.
        """
        found: list[int] = []
        if not self.share:
            return found
        key = root
        for start in range(0, len(tokens) - self.page_size, self.page_size):
            key = self.key_after(key, tokens[start : start + self.page_size])
            page = self._by_key.get(key)
            if page is None:
                break
            self._use(page)
            found.append(page)
        return found

    def take(self, count: int) -> list[int] | None:
        """``count`` pages for the caller, None when there are not that many; content of kept ones is forgotten."""
        if count > self.available:
            return None
        return [self._take_one() for _ in range(count)]

    def publish(self, page: int, key: PrefixKey) -> None:
        """Make a page that is full from now on findable; the first one with that content stays the known one."""
        if self.share and key not in self._by_key:
            self._by_key[key] = page
            self._pages[page].key = key

    def release(self, pages: Sequence[int]) -> None:
        """The caller uses them no more. The end of a prefix is given up before its beginning."""
        for page in reversed(pages):
            self._pages[page].users -= 1
            assert self._pages[page].users >= 0
            if self._pages[page].users == 0:
                self._keep_or_free(page)

    def forget(self) -> None:
        """Give up every kept page."""
        while self._kept:
            self._free.append(self._evict())

    def _use(self, page: int) -> None:
        self._kept.pop(page, None)
        self._pages[page].users += 1

    def _take_one(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page = self._evict()
            self.evictions += 1
        self._pages[page].users = 1
        return page

    def _evict(self) -> int:
        page, _ = self._kept.popitem(last=False)
        key = self._pages[page].key
        assert key is not None
        del self._by_key[key]
        self._pages[page].key = None
        return page

    def _keep_or_free(self, page: int) -> None:
        if self._pages[page].key is None:
            self._free.append(page)
        else:
            self._kept[page] = None
