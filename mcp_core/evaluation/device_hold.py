"""A device held for a long measurement: waits in line until it is free, unless a parent holds it already.

This file does not know what is measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager

from mcp_core import devices
from mcp_core.errors import Busy

__all__ = ["held_devices"]

_LOOK_S = 1.0


@asynccontextmanager
async def held_devices(
    names: Iterable[str], label: str, within: Collection[str], tell: Callable[[str], None]
) -> AsyncIterator[tuple[str, ...]]:
    """Measure alone on these devices while the block lasts; the ids of all leases that count.

    ``within`` are leases of whoever started us. ``tell`` is given the cause of each wait.
    """
    async with AsyncExitStack() as stack:
        ids = list(within)
        for device in sorted(set(names)):  # always in this order: two that wait for each other would wait for ever
            if not any(holder.id in within for holder in devices.holders(device)):
                lease = stack.enter_context(await _when_free(device, label, within, tell))
                ids.append(lease.holder.id)
        yield tuple(ids)


async def _when_free(
    device: str, label: str, within: Collection[str], tell: Callable[[str], None]
) -> devices.Lease:
    with devices.wait_in_line(device, label):
        while True:
            try:
                return devices.acquire(device, "measure", label, besides=within)
            except Busy as error:
                tell(error.message)
            await asyncio.sleep(_LOOK_S)
