"""Ceilings of this CPU that are known already, so that a sweep of one thread measures none."""

from __future__ import annotations

from mcp_core import ceilings
from mcp_core.ceilings import Ceilings
from mcp_core.hardware import detect
from mcp_core.results import now

__all__ = ["keep_known"]


def keep_known(threads: int = 1) -> Ceilings:
    """Under the test's MCP_HOME."""
    machine = detect()
    known = Ceilings(
        device="cpu",
        device_name=machine.devices[0].name,
        torch=machine.libraries["torch"],
        threads=threads,
        created=now(),
        read_bytes_s=1e10,
        copy_bytes_s=1e10,
        matmul_flop_s={"fp32": 1e11},
        op_us=2.0,
    )
    ceilings.keep(known)
    return known
