"""What ``bench --fidelity`` adds: the fidelity of the Recipe that was measured, and the Run to compare it with.

This file does not know how either is measured.
"""

from __future__ import annotations

from mcp_core.commands.fidelity import measure_fidelity
from mcp_core.commands.output import note
from mcp_core.decision.store import Store
from mcp_core.errors import Cancelled, McpError
from mcp_core.hardware import Hardware
from mcp_core.recipe import ModelRef, Quantization, Recipe
from mcp_core.results import Fidelity, Run

__all__ = ["missing_baseline", "with_fidelity"]

# So many of the newest Runs are looked through for a baseline.
_RUNS = 1000


def with_fidelity(run: Run, machine: Hardware, *, as_json: bool, original: ModelRef | None = None) -> Run:
    """The Run with its Recipe's fidelity, judged in a process of its own now that the worker is gone.

    ``original`` is the model that a checkpoint was made of which came quantized. What goes wrong is told and kept
    as "not-measurable": the measured speed stays.
    """
    try:
        fidelity = measure_fidelity(run.recipe, machine, original=original, progress_as_json=as_json)
    except Cancelled as error:
        note(f"fidelity: {error.message}")
        return run
    except McpError as error:
        note(f"fidelity: {error.message}")
        fidelity = Fidelity(status="not-measurable", reason=error.message, numerics_key=run.recipe.numerics_key)
    return run.model_copy(update={"fidelity": fidelity})


def missing_baseline(run: Run, store: Store) -> Recipe | None:
    """The same Recipe without its scheme, where it has one and no such Run of this workload and host is stored.

    llama.cpp has nothing but the GGUF's own weights to compute with.
    """
    if run.recipe.quantization.scheme in ("none", "gguf"):
        return None
    baseline = run.recipe.model_copy(update={"quantization": Quantization()})
    known = any(
        each.status == "ok"
        and each.recipe.load_key == baseline.load_key
        and each.workload.fingerprint == run.workload.fingerprint
        and each.hardware.host == run.hardware.host
        for each in store.list(_RUNS)
    )
    return None if known else baseline
