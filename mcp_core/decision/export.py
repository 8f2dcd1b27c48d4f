"""Export: a Shipment and a target come to a Bundle of files that deploy it.

The table of targets is all there is to extend. This file does not know what a target needs (``targets/``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mcp_core.decision.bundle import Bundle
from mcp_core.decision.shipment import Shipment
from mcp_core.decision.targets import containers, foreign, llama_cpp, transformers_script, worker
from mcp_core.decision.targets.readme import readme
from mcp_core.errors import InputError
from mcp_core.llama_cpp import with_engine
from mcp_core.recipe import Recipe

__all__ = ["BUNDLE_FILE", "TARGETS", "Target", "export", "recipe_served", "why_not"]

BUNDLE_FILE = "bundle.json"


@dataclass(frozen=True, slots=True)
class Target:
    """One way to deploy. ``engines``: those that can be chosen; one alone needs no choice."""

    name: str
    title: str
    about: str
    make: Callable[[Shipment, str | None], Bundle]
    engines: tuple[str, ...] = ()


TARGETS: dict[str, Target] = {
    each.name: each
    for each in (
        Target("vllm", "vLLM", "its own server with the same flags", lambda what, _: foreign.bundle(what, "vllm")),
        Target(
            "sglang",
            "SGLang",
            "its own server with the same flags",
            lambda what, _: foreign.bundle(what, "sglang"),
        ),
        Target("llama.cpp", "llama.cpp", "the GGUF with llama-server", lambda what, _: llama_cpp.bundle(what)),
        Target(
            "worker", "MCP's worker", "what was measured, by mcp-core serve", lambda what, _: worker.bundle(what)
        ),
        Target(
            "transformers",
            "transformers script",
            "a plain script that answers one prompt",
            lambda what, _: transformers_script.bundle(what),
        ),
        Target(
            "docker-compose",
            "docker-compose",
            "an engine's own image",
            containers.compose,
            tuple(containers.IMAGES),
        ),
        Target(
            "kubernetes", "Kubernetes", "an engine's own image", containers.kubernetes, tuple(containers.IMAGES)
        ),
    )
}


def export(shipment: Shipment, target: str, engine: str | None = None) -> Bundle:
    """The files. ``engine`` is for containers: another than the Recipe's own.

    Raises InputError for an unknown target or engine, RecipeError for what the target cannot do, with the reason.
    """
    if target not in TARGETS:
        raise InputError(f'There is no target "{target}".', f"There are: {', '.join(TARGETS)}.")
    row = TARGETS[target]
    if engine is not None and engine not in row.engines:
        offered = f"one of: {', '.join(row.engines)}" if row.engines else "none: its engine is given"
        raise InputError(f'Target {target} takes no engine "{engine}".', f"It takes {offered}.")
    made = row.make(shipment, engine)
    return replace(made, files={**made.files, **_papers(made, shipment), "README.md": readme(made, shipment)})


def why_not(shipment: Shipment, target: str, engine: str | None = None) -> InputError | None:
    """Why it cannot be exported there; None where it can."""
    try:
        TARGETS[target].make(shipment, engine)
    except InputError as error:
        return error
    return None


def recipe_served(recipe: Recipe, target: str) -> Recipe:
    """What runs when the target's command is started here. Raises RecipeError as the target does."""
    if target in foreign.PORTS:
        return foreign.to_engine(recipe, target)
    return with_engine(recipe, "llama.cpp") if target == "llama.cpp" else recipe


def _papers(made: Bundle, shipment: Shipment) -> Mapping[str, str]:
    """What confirm and verify read."""
    kept = {"schema_version": 1, "target": made.target, "engine": made.engine, "run": shipment.run_id}
    papers = {
        BUNDLE_FILE: json.dumps(kept, indent=2) + "\n",
        "recipe.json": shipment.recipe.to_json(),
        "workload.json": shipment.workload.model_dump_json(indent=2) + "\n",
    }
    if shipment.run is not None:
        papers["run.json"] = shipment.run.model_dump_json(indent=2) + "\n"
    if shipment.decision is not None:
        papers["decision.json"] = shipment.decision.to_json()
    return papers
