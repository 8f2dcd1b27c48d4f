"""Broken: a limit of a Goal that a configuration does not hold, in words and figures; the fidelity limits judged.

This file does not know configurations or which of their Runs decide (``candidates.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mcp_core.decision.decision import Cause
from mcp_core.evaluation.attainment import told_apart
from mcp_core.goal import FidelityLimits

__all__ = ["Broken", "judged_fidelity", "unknowable"]


@dataclass(frozen=True, slots=True)
class Broken:
    """One limit that does not hold, or a reason why nothing is known. Ratio: how far off, above 1; None unknown.

    ``never``: no figure will ever be known.
    """

    cause: Cause
    text: str
    limit: str = ""
    figure: float | None = None
    bound: float | None = None
    at_least: bool = False
    never: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether no further Run changes it, as far as it is about what Runs leave as it is."""
        return self.is_measured or self.never

    @property
    def is_measured(self) -> bool:
        """Whether a figure breaks it."""
        return self.figure is not None

    @property
    def ratio(self) -> float | None:
        """How many times the limit it is."""
        if self.figure is None or not self.bound:
            return None
        return self.bound / self.figure if self.at_least and self.figure else self.figure / self.bound


def unknowable(*, random: bool) -> str:
    """Why no fidelity of such a configuration can be measured, however often it is tried; empty where it can."""
    return "random weights say nothing" if random else ""


def judged_fidelity(
    found: Mapping[str, float | str | None], limits: FidelityLimits, never: str = ""
) -> Iterator[Broken | str]:
    """Each limit that ``found`` (``facts.fidelity_facts``) breaks, or the text of one that it holds; ``never`` says
    why there can be no figure (``unknowable``). KL that top tokens tell is a lower bound, and says so."""
    why = never or str(found.get("why") or "").rstrip(".")
    lacking = "cannot be measured" if never else "not measured"
    listed = f", by the top {found['top_k']} tokens" if found.get("top_k") else ""
    for name, label, bound, unit, at_least in (
        ("top1", "top-1", limits.top1_min, "", True),
        ("kl", "KL", limits.kl_max, " nats", False),
        ("kl_over_floor", "KL", limits.kl_over_floor_max, " times the noise floor", False),
    ):
        if bound is None:
            continue
        figure = found.get(name)
        if not isinstance(figure, float | int):
            told = f": {why}" if why else ""
            yield Broken("not measured", f"{label} {lacking}{told}", label, None, bound, at_least, bool(never))
            continue
        holds = figure >= bound if at_least else figure <= bound
        sign = {(True, True): "≥", (True, False): "<", (False, True): "≤", (False, False): ">"}[at_least, holds]
        shown, asked = told_apart(figure, bound, "{:.3g}".format)
        text = f"{label} {shown} {sign} {asked}{unit}{'' if name == 'top1' else listed}"
        yield text if holds else Broken("fidelity", text, label, float(figure), bound, at_least)
