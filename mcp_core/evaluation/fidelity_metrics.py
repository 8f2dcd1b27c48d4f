"""Every definition of fidelity once: what two models' probabilities of the same tokens become.

Definitions are llama.cpp's (tools/perplexity/README.md), in nats and shares of one instead of percent. This file
does not know models, texts or where the probabilities come from (``fidelity_scoring.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from mcp_core.results import Divergence, Mean, StratumFidelity

__all__ = ["MIN_TOKENS_P99", "DocumentScores", "Figures", "figures", "over_floor", "strata_of", "stratum"]

Array = npt.NDArray[np.float64]

RESAMPLES = 2000
# Fewer leave less than ten positions beyond the percentile.
MIN_TOKENS_P99 = 1000


@dataclass(frozen=True, slots=True, eq=False)
class DocumentScores:
    """One document's scored positions, arrays of equal length, at least one position.

    ``nll_reference`` and ``nll_candidate`` are -ln of the true token's probability; ``kl`` is
    KL(P || Q) = sum over the vocabulary of P ln(P / Q), P the reference's distribution and Q the candidate's
    (Kullback & Leibler 1951), nats; ``same_top`` says whether both have the same likeliest token.
    """

    stratum: str
    nll_reference: Array
    nll_candidate: Array
    kl: Array
    same_top: npt.NDArray[np.bool_]

    @property
    def p_reference(self) -> Array:
        """The true token's probability by the reference."""
        return np.exp(-self.nll_reference)

    @property
    def p_candidate(self) -> Array:
        """The same by the candidate."""
        return np.exp(-self.nll_candidate)

    @property
    def dp(self) -> Array:
        """Difference of the true token's probability, candidate - reference."""
        return self.p_candidate - self.p_reference


@dataclass(frozen=True, slots=True)
class Figures:
    """What is told of a set of documents."""

    documents: int
    tokens: int
    perplexity: Mean
    reference_perplexity: Mean
    kl: Divergence
    top1: Mean
    rms_dp: Mean


def figures(documents: Sequence[DocumentScores]) -> Figures:
    """Figures over all positions of these documents; standard errors by bootstrap over documents.

    perplexity = exp(mean nll); top1 = share of positions with the same likeliest token;
    rms_dp = sqrt(mean(dp^2)). There is at least one document.
    """
    kl = np.concatenate([each.kl for each in documents])
    mean = _estimate(documents, lambda each: each.kl)
    return Figures(
        documents=len(documents),
        tokens=len(kl),
        perplexity=_estimate(documents, lambda each: each.nll_candidate, np.exp),
        reference_perplexity=_estimate(documents, lambda each: each.nll_reference, np.exp),
        kl=Divergence(
            mean=mean.mean,
            mean_se=mean.se,
            median=float(np.median(kl)),
            p99=float(np.percentile(kl, 99)) if len(kl) >= MIN_TOKENS_P99 else None,
            max=float(kl.max()),
        ),
        top1=_estimate(documents, lambda each: each.same_top.astype(np.float64)),
        rms_dp=_estimate(documents, lambda each: each.dp**2, np.sqrt),
    )


def strata_of(documents: Sequence[DocumentScores]) -> tuple[StratumFidelity, ...]:
    """The figures of each stratum, the one with the largest mean KL first."""
    ordered = sorted(documents, key=lambda each: each.stratum)
    rows = [stratum(name, tuple(group)) for name, group in groupby(ordered, lambda each: each.stratum)]
    return tuple(sorted(rows, key=lambda row: row.kl.mean if row.kl else 0.0, reverse=True))


def stratum(name: str, documents: Sequence[DocumentScores]) -> StratumFidelity:
    """One row of such a table."""
    found = figures(documents)
    return StratumFidelity(
        name=name,
        documents=found.documents,
        tokens=found.tokens,
        perplexity=found.perplexity,
        reference_perplexity=found.reference_perplexity,
        kl=found.kl,
        top1=found.top1,
        rms_dp=found.rms_dp,
    )


def over_floor(kl_mean: float, floor: float) -> float | None:
    """The headline: mean KL as a multiple of the reference's distance to itself; None where that is zero."""
    return kl_mean / floor if floor > 0 else None


def _estimate(
    documents: Sequence[DocumentScores],
    values: Callable[[DocumentScores], Array],
    transform: Callable[[Array], Array] = np.asarray,
) -> Mean:
    """transform(mean over positions), and the standard deviation of that over resampled sets of documents.

    Documents, not positions, are drawn with replacement (the cluster bootstrap; Efron & Tibshirani 1993, ch. 8):
    positions of one document are alike. With one document nothing is known of others: no standard error.
    """
    sums = np.array([values(each).sum() for each in documents])
    counts = np.array([len(each.kl) for each in documents], dtype=np.float64)
    value = float(transform(np.asarray(sums.sum() / counts.sum())))
    if len(documents) < 2:
        return Mean(mean=value)
    drawn = np.random.default_rng(0).integers(0, len(documents), size=(RESAMPLES, len(documents)))
    sample = transform(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return Mean(mean=value, se=float(sample.std()))
