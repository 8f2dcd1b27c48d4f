"""The README of a bundle: what speaks for it, how it is started and checked, what did not carry over.

This file does not know how a target is started; the Bundle says it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from mcp_core.decision.bundle import Bundle
from mcp_core.decision.decision import Choice
from mcp_core.decision.facts import configuration_name
from mcp_core.decision.shipment import Shipment

__all__ = ["confirm_command", "readme", "standing"]

_CARRIES = (
    "Bytes of weights and of keys and values carry from one engine to another, and so does the fidelity of the "
    "same quantized tensors."
)
# What of a bundle bench reads.
_MEASURED_BY = ("recipe.json", "workload.json")
_NEVER = "Latency, throughput, capacity and energy never do"


def standing(shipment: Shipment, engine: str) -> str:
    """Recommendation or candidate on this engine, with its evidence: confirmed elsewhere is not confirmed here."""
    level = shipment.evidence[:1].upper() + shipment.evidence[1:]
    confirmed = shipment.is_confirmed_on(engine)
    return f"{level}: {'a recommendation' if confirmed else 'a candidate, not yet a recommendation'}."


def confirm_command(bundle: Bundle, folder: str = ".") -> str:
    """What measures the deployment itself; of what is no server, the same configuration in MCP's worker."""
    if not bundle.serves:
        return shlex.join(("mcp-core", "bench", *(str(Path(folder, name)) for name in _MEASURED_BY)))
    return f"mcp-core confirm {shlex.quote(folder)}" + ("" if bundle.command else " --url http://HOST:PORT")


def readme(bundle: Bundle, shipment: Shipment) -> str:
    """Markdown."""
    return "\n".join(_lines(bundle, shipment)) + "\n"


def _lines(bundle: Bundle, shipment: Shipment) -> Iterator[str]:
    yield f"# {shipment.recipe.model.id} on {bundle.title}"
    yield ""
    yield f"**{standing(shipment, bundle.engine)}**"
    yield ""
    about = f"{_runs(shipment)}, workload {shipment.workload.name}"
    yield f"Configuration: {configuration_name(shipment.recipe)}. {about}."
    yield from _evidence(bundle, shipment)
    yield ""
    yield "## Start"
    yield from (f"{number}. {step}" for number, step in enumerate((*bundle.steps, f"`{bundle.run}`"), 1))
    yield ""
    yield "## Verify"
    yield from _verify(bundle, shipment)
    yield ""
    yield "## What did not carry over"
    yield from (f"- {line}" for line in bundle.not_carried or ("Nothing that is known.",))
    yield ""
    yield "## Files"
    yield from (f"- `{name}`" for name in sorted({*bundle.files, *bundle.copies, "recipe.json", "workload.json"}))


def _runs(shipment: Shipment) -> str:
    """Every Run behind the figures."""
    winner = shipment.decision.winner if shipment.decision else None
    ids = winner.runs if winner and winner.runs else (shipment.run_id,)
    return f"Run{'' if len(ids) == 1 else 's'} {', '.join(ids)}"


def _evidence(bundle: Bundle, shipment: Shipment) -> Iterator[str]:
    if bundle.engine != shipment.recipe.engine and not shipment.is_confirmed_on(bundle.engine):
        yield ""
        yield f"{_CARRIES} {_NEVER}: those below were measured on {shipment.recipe.engine}, not on {bundle.engine}."
    figures = dict(_figures(shipment))
    if figures:
        yield ""
        yield "| figure | measured |"
        yield "|---|---|"
        yield from (f"| {name} | {value} |" for name, value in figures.items())


def _figures(shipment: Shipment) -> Iterator[tuple[str, str]]:
    """A decision's are those of its answer, over all fresh starts; else the one Run's."""
    winner = shipment.decision.winner if shipment.decision else None
    yield from _decided(winner) if winner else _measured(shipment)
    memory = shipment.run.memory if shipment.run else None
    peak_bytes = winner.figures.peak_bytes if winner else memory.peak_bytes if memory else None
    if memory is not None and memory.weights_bytes is not None:
        yield "weights", f"{memory.weights_bytes / 1e9:,.2f} GB"
    if peak_bytes is not None:
        yield "peak memory", f"{peak_bytes / 1e9:,.2f} GB"
    kl = winner.figures.kl if winner else _kl(shipment)
    if kl is not None:
        yield "KL against the native dtype", f"{kl:.4g} nats"


def _decided(winner: Choice) -> Iterator[tuple[str, str]]:
    figures = winner.figures
    yield "fresh starts", str(winner.starts) + (", figures are their mean" if winner.starts > 1 else "")
    yield from _shown("output tokens/s", figures.output_tok_s, ",.1f")
    yield from _shown("p50 TTFT, ms", figures.ttft_ms, ",.1f")
    yield from _shown("p50 TPOT, ms", figures.tpot_ms, ",.2f")
    yield from _shown("failed requests", figures.failed_share, ".1%")
    if figures.within:
        yield "within", "; ".join(figures.within)


def _measured(shipment: Shipment) -> Iterator[tuple[str, str]]:
    measured = shipment.measurement
    if measured is not None:
        yield from _shown("output tokens/s", measured.output_tok_s, ",.1f")
        yield from _shown("p50 TTFT, ms", measured.ttft_ms.p50, ",.1f")
        yield from _shown("p95 TTFT, ms", measured.ttft_ms.p95, ",.1f")
        yield from _shown("p50 TPOT, ms", measured.tpot_ms.p50, ",.2f")
        yield "requests", f"{measured.completed} completed, {measured.failed} failed"


def _kl(shipment: Shipment) -> float | None:
    fidelity = shipment.run.fidelity if shipment.run else None
    return fidelity.kl.mean if fidelity and fidelity.kl else None


def _shown(name: str, value: float | None, form: str) -> Iterator[tuple[str, str]]:
    if value is not None:
        yield name, format(value, form)


def _verify(bundle: Bundle, shipment: Shipment) -> Iterator[str]:
    if bundle.serves:
        yield "Measure this deployment with the same workload, beside what was predicted (run it in this folder):"
    else:
        yield "It is no server that could be asked. Measure the same configuration in MCP's worker, and compare:"
    yield ""
    yield f"    {confirm_command(bundle)}"
    if not bundle.serves:
        yield f"    mcp-core compare {shipment.run_id} RUN    # RUN: the id that bench says"
        yield "    mcp-core confirm . --url http://HOST:PORT    # a server that you put around it"
    if bundle.command is not None:
        yield "    mcp-core confirm . --url http://HOST:PORT    # a server that runs already"
    if shipment.decision is not None:
        yield ""
        yield "Later, measure winner and runner-up again; it exits with 1 when the choice no longer holds:"
        yield ""
        yield "    mcp-core verify decision.json"
