"""``mcp-core confirm DIR``: a bundle's own command started, or a URL, measured beside what was predicted."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mcp_core import conflicts, hardware
from mcp_core.commands.arguments import add_json, add_progress
from mcp_core.commands.job_run import run_job
from mcp_core.commands.output import emit, note, say, table, write_file
from mcp_core.decision.confirmation import Beside, Confirmation
from mcp_core.decision.decision import Decision
from mcp_core.decision.export import BUNDLE_FILE, export, recipe_served
from mcp_core.decision.figures import figure
from mcp_core.decision.shipment import of_decision, of_run, read_shipment
from mcp_core.errors import InputError, McpError, ModelNotFound
from mcp_core.evaluation.endpoint_recipe import require_url
from mcp_core.recipe import Recipe
from mcp_core.results import Run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR, --url, --progress, --json."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder that mcp-core export --out wrote")
    parser.add_argument("--url", help="measure this running server; nothing is started")
    add_progress(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Measure and print; the papers in DIR are raised where it holds. Exits 1 when it is not confirmed.

    Raises InputError for a folder that is no bundle, and what starting the command raises.
    """
    request = _request(options.folder, options.url)
    recipe = recipe_served(_recipe_in(options.folder), request["target"])
    device = None if options.url else conflicts.resolve(recipe, hardware.detect()).device
    title = f"confirm {options.folder.name}"
    answer = run_job("confirm", title, request, device=device, progress_as_json=options.progress == "json")
    found = Confirmation.model_validate(answer["confirmation"])
    if options.json:
        emit(answer["confirmation"])
    else:
        _show(found)
    if found.holds:
        _raise(options.folder, request, answer, found)
        return 0
    raise McpError(found.why, f"Both Runs stay stored: mcp-core compare {found.of_run} {found.run}")


def _request(folder: Path, url: str | None) -> dict[str, Any]:
    if url is not None:
        require_url(url)
    bundle = _read(folder / BUNDLE_FILE)
    return {
        "target": bundle.get("target"),
        "engine": bundle.get("engine") if bundle.get("target") in ("docker-compose", "kubernetes") else None,
        "url": url,
        "run": _read(folder / "run.json") if (folder / "run.json").is_file() else None,
        "decision": _read(folder / "decision.json") if (folder / "decision.json").is_file() else None,
    }


def _raise(folder: Path, request: dict[str, Any], answer: dict[str, Any], found: Confirmation) -> None:
    """README, Run and Decision of the bundle say what is known now."""
    run = Run.model_validate(request["run"]) if request["run"] else None
    run = run.model_copy(update={"evidence": found.evidence}) if run else None
    decision = answer["decision"]
    shipment = of_decision(Decision.from_dict(decision), lambda _: run) if decision else None
    if shipment is None:
        assert run is not None, "a bundle holds one of the two"
        shipment = of_run(run)
    files = export(shipment, request["target"], request["engine"]).files
    for name in ("README.md", "run.json", "decision.json"):
        if name in files:
            write_file(folder / name, files[name], "Both Runs stay stored; confirm again once it can be written.")


def _recipe_in(folder: Path) -> Recipe:
    """Raises InputError, ModelNotFound for papers that are damaged or gone, before anything is started."""
    papers = (folder / name for name in ("decision.json", "run.json"))
    known = [read_shipment(str(each), lambda _: None).recipe for each in papers if each.is_file()]
    if not known:
        raise ModelNotFound(f"{folder} has neither run.json nor decision.json.", "Export it again.")
    return known[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelNotFound(
            f"{path} cannot be read: {error.strerror}.", "DIR is what mcp-core export wrote."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON.", "Export it again.") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is no JSON object.", "Export it again.")
    return document


def _show(found: Confirmation) -> None:
    table([("FIGURE", "PREDICTED", "MEASURED", "ERROR"), *map(_row, found.figures)])
    for limit in found.limits:
        say(limit)
    if found.holds:  # else it is the error that the command ends with
        say(f"\n{found.why}")
    note(f"measured as {found.run}")


def _row(each: Beside) -> tuple[str, ...]:
    unit = f" ({each.unit})" if each.unit else ""
    shown = [figure(value) for value in (each.predicted, each.measured)]
    return f"{each.name}{unit}", *shown, "-" if each.error is None else f"{each.error:+.1%}"
