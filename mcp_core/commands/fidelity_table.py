"""How a Fidelity is shown in a terminal: the headline, the figures, the strata worst first, the notes.

This file does not know where it comes from.
"""

from __future__ import annotations

from mcp_core.commands.output import say, table
from mcp_core.results import Divergence, Fidelity, Mean, StratumFidelity

__all__ = ["headline", "show_fidelity"]

_HEADING = (
    "",
    "documents",
    "tokens",
    "perplexity",
    "reference",
    "KL mean",
    "median",
    "p99",
    "max",
    "top-1",
    "RMS Δp",
)


def headline(fidelity: Fidelity) -> str:
    """One line that says it all."""
    if fidelity.status != "measured" or fidelity.kl is None:
        return f"fidelity: {fidelity.status}: {fidelity.reason}"
    if fidelity.kl_over_floor is None:
        return f"fidelity: KL {_mean(fidelity.kl.mean, fidelity.kl.mean_se)} nats"
    floor = fidelity.noise_floor.mean if fidelity.noise_floor else 0.0
    return (
        f"fidelity: {_number(fidelity.kl_over_floor)} times the noise floor "
        f"(KL {_mean(fidelity.kl.mean, fidelity.kl.mean_se)}, floor {_number(floor)} nats)"
    )


def show_fidelity(fidelity: Fidelity) -> None:
    """The whole of it for people. KL is in nats, shares are of one."""
    say(headline(fidelity))
    say(f"against: {fidelity.reference}")
    if fidelity.status == "measured" and fidelity.perplexity and fidelity.reference_perplexity:
        say(f"text: {fidelity.text_name}, scored on the {fidelity.path} path")
        say("")
        everything = StratumFidelity(
            name="all",
            documents=fidelity.documents,
            tokens=fidelity.tokens,
            perplexity=fidelity.perplexity,
            reference_perplexity=fidelity.reference_perplexity,
            kl=fidelity.kl,
            top1=fidelity.top1,
            rms_dp=fidelity.rms_dp,
        )
        table([_HEADING, *(_cells(row) for row in (everything, *fidelity.strata))])
        say("")
    for note in fidelity.notes:
        say(f"note: {note}")


def _cells(row: StratumFidelity) -> tuple[str, ...]:
    return (
        row.name,
        str(row.documents),
        f"{row.tokens:,}",
        _of(row.perplexity),
        _of(row.reference_perplexity),
        *_divergence(row.kl),
        _of(row.top1),
        _of(row.rms_dp),
    )


def _divergence(kl: Divergence | None) -> tuple[str, str, str, str]:
    if kl is None:
        return ("-", "-", "-", "-")
    p99 = "too few" if kl.p99 is None else _number(kl.p99)
    return (_mean(kl.mean, kl.mean_se), _number(kl.median), p99, _number(kl.max))


def _of(mean: Mean | None) -> str:
    return "-" if mean is None else _mean(mean.mean, mean.se)


def _mean(mean: float, se: float | None) -> str:
    return _number(mean) if se is None else f"{_number(mean)} ± {se:.1g}"


def _number(value: float) -> str:
    return f"{value:.4g}"
