"""Two models over the same tokens: their next-token distributions read chunk by chunk and set against each other.

Full vocabulary, in float64; never more than a chunk and a window of logits of each model at once. This file does
not know how models are loaded (``fidelity.py``) or what is averaged (``fidelity_metrics.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mcp_core.errors import LoadFailed
from mcp_core.evaluation.fidelity_metrics import DocumentScores
from mcp_core.evaluation.fidelity_text import Passage
from mcp_core.inference.kv_cache import extend
from mcp_core.token_map import TOP

__all__ = ["Feed", "PassageScores", "decode_feeds", "prefill_feeds", "read", "score", "windows"]

# Positions compared at once: a few float64 copies of WINDOW x vocabulary.
WINDOW = 16


@dataclass(frozen=True, slots=True)
class Feed:
    """One forward pass over tokens ``start`` to ``stop``; logits of its last ``kept`` positions are wanted."""

    start: int
    stop: int
    kept: int


def prefill_feeds(passage: Passage, chunk: int) -> tuple[Feed, ...]:
    """As the engine prefills a prompt: ``chunk`` tokens at a time, all but the last, which predicts nothing."""
    last, wanted = len(passage.ids) - 1, passage.scored_from - 1
    stops = ((start, min(start + chunk, last)) for start in range(0, last, chunk))
    return tuple(Feed(start, stop, max(0, stop - max(start, wanted))) for start, stop in stops)


def decode_feeds(passage: Passage, chunk: int) -> tuple[Feed, ...]:
    """As the engine decodes: what comes before the first prediction in chunks, then one token a step."""
    last, wanted = len(passage.ids) - 1, passage.scored_from - 1
    prefill = (Feed(start, min(start + chunk, wanted), 0) for start in range(0, wanted, chunk))
    return (*prefill, *(Feed(at, at + 1, 1) for at in range(wanted, last)))


@torch.inference_mode()
def read(
    model: Any, passage: Passage, feeds: Sequence[Feed], cache: Any, fed: Callable[[int], None]
) -> Iterator[torch.Tensor]:
    """Logits ``[kept, vocab]`` of every feed that wants some. ``fed`` hears of each feed's number of tokens."""
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([passage.ids], dtype=torch.long, device=device)
    for feed in feeds:
        logits = extend(model, ids[:, feed.start : feed.stop], cache, logits_to_keep=max(1, feed.kept))
        if feed.kept:
            yield logits[0, -feed.kept :]
        fed(feed.stop - feed.start)


def windows(pieces: Iterable[torch.Tensor], size: int = WINDOW) -> Iterator[torch.Tensor]:
    """The same rows in pieces of ``size``, the last one shorter: however two models were read, they align."""
    waiting: list[torch.Tensor] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) < size:
            continue
        rows = torch.cat(waiting)
        whole = len(rows) - len(rows) % size
        yield from (rows[start : start + size] for start in range(0, whole, size))
        waiting = [rows[whole:]]
    if waiting and len(rest := torch.cat(waiting)):
        yield rest


@dataclass(frozen=True, slots=True, eq=False)
class PassageScores:
    """What came of one passage. ``*_ids`` and ``*_p`` are ``[positions, TOP]``: likeliest tokens, best first."""

    passage: Passage
    scores: DocumentScores
    reference_ids: npt.NDArray[np.int64]
    reference_p: npt.NDArray[np.float64]
    candidate_ids: npt.NDArray[np.int64]
    candidate_p: npt.NDArray[np.float64]


@torch.inference_mode()
def score(
    passage: Passage, reference: Iterable[torch.Tensor], others: Sequence[Iterable[torch.Tensor]]
) -> tuple[PassageScores, ...]:
    """Set each of ``others`` against the reference, in lockstep; all give the same windows of logits.

    Raises LoadFailed where a model computes no usable probabilities.
    """
    found: tuple[list[_Window], ...] = tuple([] for _ in others)
    targets = torch.tensor(passage.ids[passage.scored_from :])
    at = 0
    for expected, *rivals in zip(reference, *others, strict=True):
        true_ids = targets[at : at + len(expected)]
        at += len(expected)
        for row, logits in zip(found, rivals, strict=True):
            row.append(_Window.of(expected.to(logits.device), logits, true_ids.to(logits.device)))
    assert at == len(targets), "every scored token was predicted"
    return tuple(_joined(passage, row) for row in found)


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """One window's figures, on the host."""

    nll_reference: npt.NDArray[np.float64]
    nll_candidate: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]
    reference_ids: npt.NDArray[np.int64]
    reference_p: npt.NDArray[np.float64]
    candidate_ids: npt.NDArray[np.int64]
    candidate_p: npt.NDArray[np.float64]

    @classmethod
    def of(cls, reference: torch.Tensor, candidate: torch.Tensor, targets: torch.Tensor) -> _Window:
        """``[positions, vocab]`` logits twice, ``[positions]`` ids."""
        log_p = torch.log_softmax(reference.double(), dim=-1)
        log_q = torch.log_softmax(candidate.double(), dim=-1)
        p = log_p.exp()
        # Where P is 0 its term is 0, whatever Q is. Rounding may leave a sum a hair below zero.
        kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1).clamp(min=0)
        top_p, top_q = log_p.topk(TOP), log_q.topk(TOP)
        at = targets[:, None]
        tensors = (
            -log_p.gather(-1, at)[:, 0],
            -log_q.gather(-1, at)[:, 0],
            kl,
            top_p.indices,
            top_p.values.exp(),
            top_q.indices,
            top_q.values.exp(),
        )
        return cls(*(each.cpu().numpy() for each in tensors))


def _joined(passage: Passage, found: Sequence[_Window]) -> PassageScores:
    def all_of(name: str) -> Any:
        return np.concatenate([getattr(each, name) for each in found])

    reference_ids, candidate_ids = all_of("reference_ids"), all_of("candidate_ids")
    scores = DocumentScores(
        stratum=passage.document.stratum,
        nll_reference=all_of("nll_reference"),
        nll_candidate=all_of("nll_candidate"),
        kl=all_of("kl"),
        same_top=reference_ids[:, 0] == candidate_ids[:, 0],
    )
    for values in (scores.nll_reference, scores.nll_candidate, scores.kl):
        if not np.isfinite(values).all():
            raise LoadFailed(
                f'A model computes no usable probabilities on "{passage.document.name}".',
                "Choose bf16 or fp32, or another quantization scheme.",
            )
    return PassageScores(
        passage, scores, reference_ids, all_of("reference_p"), candidate_ids, all_of("candidate_p")
    )
