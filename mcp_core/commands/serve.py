"""``mcp-core serve RECIPE``: one worker in the foreground, until Ctrl-C, SIGTERM or its own end."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress

from mcp_core.commands.arguments import add_recipe, add_set, control_token, hub_token, read_recipe, whole_number
from mcp_core.commands.interrupts import run_until_stopped
from mcp_core.commands.output import ProgressReport, note, say
from mcp_core.errors import error_from
from mcp_core.recipe import Recipe
from mcp_core.serving.supervisor import Supervisor

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --port, --host, --force, --set."""
    add_recipe(parser)
    add_set(parser)
    parser.add_argument("--port", type=whole_number(0, 65535), default=0, metavar="N", help="default: any free one")
    parser.add_argument(
        "--host",
        type=_loopback,
        default="127.0.0.1",
        help="loopback only; default: 127.0.0.1; put a proxy in front for others",
    )
    parser.add_argument("--force", action="store_true", help="load it even where it is estimated not to fit")


def run(options: argparse.Namespace) -> int:
    """Serve. Prints ``ready URL`` once it answers. Raises what loading raises, and the worker's own death."""
    return run_until_stopped(_serve(read_recipe(options), options))


async def _serve(recipe: Recipe, options: argparse.Namespace) -> int:
    supervisor = Supervisor()
    try:
        worker = await supervisor.start(
            recipe,
            port=options.port,
            hub_token=hub_token(),
            force=options.force,
            on_progress=ProgressReport(as_json=False),
            token=control_token(),
        )
        say(f"ready {worker.url}")
        try:
            await supervisor.wait(worker.id)
        except asyncio.CancelledError:
            note("stopping")
            return 0
        if worker.failure is not None:
            raise error_from(worker.failure.model_dump())
        return 0
    finally:
        await supervisor.close()


def _loopback(text: str) -> str:
    if text != "localhost" and not _is_loopback(text):
        raise argparse.ArgumentTypeError("a worker listens on this machine only; put a proxy in front of it")
    return text


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text) == ipaddress.ip_address("127.0.0.1")
    except ValueError:
        return False
