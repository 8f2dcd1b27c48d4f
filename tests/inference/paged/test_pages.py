"""The pool's bookkeeping, against a plain model of what it promises."""

from __future__ import annotations

import random

from mcp_core.inference.paged.pages import PagePool


def filled(pool: PagePool, tokens: list[int], tenant: str = "") -> list[int]:
    """Pages with these tokens, the full ones made findable."""
    pages = pool.take(-(-len(tokens) // pool.page_size))
    assert pages is not None
    key = pool.root(tenant)
    for index, start in enumerate(range(0, len(tokens) - pool.page_size + 1, pool.page_size)):
        key = pool.key_after(key, tokens[start : start + pool.page_size])
        pool.publish(pages[index], key)
    return pages


def test_page_0_is_never_given_out_and_no_page_twice() -> None:
    pool = PagePool(9, 4)
    taken = pool.take(8)
    assert taken is not None
    assert sorted(taken) == list(range(1, 9))
    assert pool.take(1) is None
    assert (pool.used, pool.available) == (8, 0)


def test_a_prefix_is_found_by_whole_pages_and_leaves_a_token() -> None:
    pool = PagePool(20, 4)
    tokens = list(range(12))
    pages = filled(pool, tokens)
    pool.release(pages)
    assert pool.find([*tokens, 99], pool.root()) == pages
    pool.release(pages)
    assert pool.find(tokens, pool.root()) == pages[:2]  # the last token's logits have to be computed
    pool.release(pages[:2])
    assert pool.find([*tokens[:8], 77, 77, 77, 77, 77], pool.root()) == pages[:2]
    pool.release(pages[:2])
    assert pool.find([5, *tokens], pool.root()) == []


def test_tenants_share_nothing() -> None:
    pool = PagePool(20, 4)
    pool.release(filled(pool, list(range(12)), "a"))
    assert pool.find(list(range(12)), pool.root("b")) == []
    assert len(pool.find(list(range(12)), pool.root("a"))) == 2


def test_without_sharing_nothing_is_kept() -> None:
    pool = PagePool(20, 4, share=False)
    pool.release(filled(pool, list(range(12))))
    assert (pool.kept, pool.available) == (0, 19)
    assert pool.find(list(range(12)), pool.root()) == []


def test_the_end_of_the_longest_unused_prefix_goes_first() -> None:
    pool = PagePool(7, 4)  # six pages
    old, new = filled(pool, list(range(12))), filled(pool, list(range(100, 112)))
    pool.release(old)
    pool.release(new)
    assert pool.take(1) == [old[2]]
    assert pool.evictions == 1
    assert pool.find([*range(12), 0], pool.root()) == old[:2]
    assert pool.find([*range(100, 112), 0], pool.root()) == new


def test_equal_content_is_kept_once() -> None:
    pool = PagePool(20, 4)
    first, second = filled(pool, list(range(8))), filled(pool, list(range(8)))
    assert first != second
    pool.release(second)
    assert pool.kept == 0  # the known one is still in use
    pool.release(first)
    assert pool.kept == 2


def test_random_use_keeps_the_books() -> None:
    draw = random.Random(0)
    pool = PagePool(30, 4)
    held: list[list[int]] = []
    for _ in range(3000):
        if held and draw.random() < 0.5:
            pool.release(held.pop(draw.randrange(len(held))))
            continue
        tokens = [draw.randrange(2) for _ in range(draw.randrange(5, 30))]
        pages = pool.find(tokens, pool.root())
        rest = pool.take(-(-len(tokens) // 4) - len(pages))
        if rest is None:
            pool.release(pages)
            continue
        key = pool.root()
        for index in range(len(tokens) // 4):
            key = pool.key_after(key, tokens[4 * index : 4 * index + 4])
            if index >= len(pages):
                pool.publish(rest[index - len(pages)], key)
        held.append(pages + rest)
    in_use = {page for pages in held for page in pages}
    assert pool.used == len(in_use)
    assert 0 not in in_use
    for pages in held:
        pool.release(pages)
    assert (pool.used, pool.available) == (0, 29)
    pool.forget()
    assert pool.kept == 0
    assert len(pool.take(29) or ()) == 29
