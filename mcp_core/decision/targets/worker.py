"""MCP's own worker as target: ``mcp-core serve RECIPE.json``. What was measured is what is deployed.

This file does not know how a worker is started.
"""

from __future__ import annotations

from mcp_core.decision.bundle import Bundle, Command, shell_script
from mcp_core.decision.shipment import Shipment

__all__ = ["PORT", "bundle"]

PORT = 8000


def bundle(shipment: Shipment) -> Bundle:
    """Of any Recipe."""
    command = f'mcp-core serve "$(dirname "$0")/recipe.json" --port ${{PORT:-{PORT}}} "$@"'
    return Bundle(
        target="worker",
        title="MCP's worker",
        engine=shipment.recipe.engine,
        files={"serve.sh": shell_script(f"MCP's worker, from Run {shipment.run_id}.", command, {})},
        run="./serve.sh",
        command=Command("mcp-core", ("serve", "recipe.json", "--port", str(PORT))),
        executable=frozenset({"serve.sh"}),
        not_carried=(
            "It listens on its own machine only: put a reverse proxy that asks for a key in front of it.",
        ),
        # The name on PyPI is somebody else's.
        steps=(
            "install MCP from its own repository, the version that wrote this bundle (versions: run.json); "
            "PyPI's mcp-core is another program",
        ),
    )
