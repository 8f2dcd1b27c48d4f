"""What a sweep's devices reach at most, measured once before its first cell where nobody has: Why and MBU need it.

Kept under MCP_HOME, so that neither a resumed sweep nor the next one measures it again. This file does not know how
ceilings are measured (``ceilings_job.py``) or what they are for (``why.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mcp_core import ceilings, conflicts
from mcp_core.errors import Cancelled, McpError
from mcp_core.hardware import Hardware
from mcp_core.job_child import JOB_COMMAND, run_child
from mcp_core.recipe import Recipe

__all__ = ["CEILINGS_S", "lacking_ceilings", "with_ceilings"]

# Of one device: 12 s on an H100's host, 13 s on one core of a small CPU, imports included.
CEILINGS_S = 12.0

# stage, fraction of the stage, message
Tell = Callable[[str, float | None, str], None]
# A device's id and the threads to measure with.
Asked = tuple[str, int]


def lacking_ceilings(recipes: Iterable[Recipe], hardware: Hardware) -> tuple[Asked, ...]:
    """Devices of these Recipes that torch can use and whose ceilings are not known; a CPU once for each number of
    threads."""
    resolved = (conflicts.resolve(recipe, hardware) for recipe in recipes)
    by_device = {(each.device, each.threads if each.device == "cpu" else None): each for each in resolved}
    return tuple(
        (device, each.threads or 1)
        for (device, threads), each in by_device.items()
        if (device == "cpu" or hardware.torch_cuda) and hardware.ceilings_of(device, threads) is None
    )


async def with_ceilings(
    recipes: Iterable[Recipe], hardware: Hardware, tell: Tell, command: Sequence[str] = JOB_COMMAND
) -> Hardware:
    """The machine with the ceilings that were lacking; whoever calls holds its devices.

    One that cannot be measured, or whose job is ended by someone else, is told and left out. Raises Cancelled when
    this task is cancelled, after the job has ended.
    """
    lacking = lacking_ceilings(recipes, hardware)
    for index, asked in enumerate(lacking):
        await _measure(asked, (index, len(lacking)), tell, command)
    return _as_known_now(hardware) if lacking else hardware


async def _measure(asked: Asked, place: tuple[int, int], tell: Tell, command: Sequence[str]) -> None:
    (device, threads), (index, total) = asked, place

    def on_event(event: Mapping[str, Any]) -> None:
        tell("ceilings", (index + (event["fraction"] or 0.0)) / total, f"{device}: {event['message']}")

    tell("ceilings", index / total, f"{device}: what it reaches at most, once")
    try:
        await run_child("ceilings", {"device": device, "threads": threads}, {}, on_event, command)
    except McpError as error:
        task = asyncio.current_task()
        if isinstance(error, Cancelled) and task is not None and task.cancelling():
            raise
        tell("without ceilings", None, f"{device}: {error.message} The sweep goes on; its Runs have no MBU.")


def _as_known_now(hardware: Hardware) -> Hardware:
    names = (device.name for device in hardware.devices)
    found = ceilings.kept(names, hardware.driver, hardware.libraries.get("torch"))
    return hardware.model_copy(update={"ceilings": found})
