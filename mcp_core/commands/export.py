"""``mcp-core export RUN|DECISION --target T --out DIR``: the files that deploy it, and what they leave out."""

from __future__ import annotations

import argparse
from pathlib import Path

from mcp_core.commands.arguments import add_json
from mcp_core.commands.output import emit, say
from mcp_core.decision.bundle import Bundle, write
from mcp_core.decision.export import TARGETS, export
from mcp_core.decision.shipment import read_shipment
from mcp_core.decision.store import Store
from mcp_core.decision.targets.containers import IMAGES
from mcp_core.decision.targets.readme import confirm_command, standing

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN|DECISION, --target, --engine, --out, --json."""
    parser.add_argument("what", metavar="RUN|DECISION", help="id of a stored Run, or a file with a Run or Decision")
    parser.add_argument("--target", required=True, metavar="T", help=f"one of: {', '.join(TARGETS)}")
    parser.add_argument(
        "--engine", metavar="E", help=f"for containers: {', '.join(IMAGES)}; default: the Run's own"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="a new folder; nothing else is written"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Write the bundle. Raises InputError for what cannot be exported, with the reason; nothing is written then."""
    with Store() as store:
        shipment = read_shipment(options.what, store.get)
    bundle = export(shipment, options.target, options.engine)
    paths = write(bundle, options.out)
    stands, command = standing(shipment, bundle.engine), confirm_command(bundle, str(options.out))
    if options.json:
        emit(_document(bundle, paths, options.out) | {"standing": stands, "verify": command})
        return 0
    say(f"{bundle.title}: {len(paths)} files in {options.out}")
    say(f"{stands}")
    for line in bundle.not_carried:
        say(f"Not carried over: {line}")
    for number, step in enumerate((*bundle.steps, bundle.run), 1):
        say(f"{number}. {step}")
    say(f"Verify: {command}")
    return 0


def _document(bundle: Bundle, paths: tuple[Path, ...], folder: Path) -> dict[str, object]:
    return {
        "target": bundle.target,
        "engine": bundle.engine,
        "files": sorted(str(path.relative_to(folder)) for path in paths),
        "run": bundle.run,
        "not_carried": list(bundle.not_carried),
    }
