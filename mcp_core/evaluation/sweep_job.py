"""The sweep job: a sweep begun or resumed in a process of its own.

This file does not know what a sweep does (``sweep.py``).
"""

from __future__ import annotations

import os

from mcp_core import devices
from mcp_core.decision.store import Store
from mcp_core.decision.sweeps import Sweeps
from mcp_core.errors import Cancelled, InputError
from mcp_core.evaluation.new_sweep import begin
from mcp_core.evaluation.sweep import Host, race
from mcp_core.hardware import detect
from mcp_core.jobs import Job, Outcome
from mcp_core.sweep_plan import SweepPlan

__all__ = ["run"]


async def run(job: Job) -> Outcome:
    """Request: plan, or sweep_id to resume. Secrets: store_url, hub_token. The answer is {sweep_id}."""
    hardware = detect()
    host = Host(
        hardware,
        tell=job.tell,
        within=devices.leases_of(os.getppid()),  # the app holds the device for its job
        hub_token=job.secrets.get("hub_token"),
        store_url=job.secrets.get("store_url"),
    )
    with Store(job.secrets.get("store_url")) as store:
        sweep_id = job.request.get("sweep_id")
        if sweep_id is not None:
            Sweeps(store).claim(sweep_id, hardware)
        elif job.request.get("plan") is not None:
            sweep_id = begin(store, SweepPlan.from_dict(job.request["plan"]), hardware)
        else:
            raise InputError("A sweep job needs a plan, or the sweep that it resumes.")
        try:
            await race(store, sweep_id, host)
        except Cancelled as error:
            return Outcome("cancelled", error.as_dict(), {"sweep_id": sweep_id})
    return Outcome("done", None, {"sweep_id": sweep_id})
