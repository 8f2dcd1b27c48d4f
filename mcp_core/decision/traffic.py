"""Traffic: what a Workload asks, whatever its load and however long it runs; what loads may be compared under.

This file does not know Runs.
"""

from __future__ import annotations

import functools
import hashlib
import json

from mcp_core.workload import Workload

__all__ = ["traffic_key"]

# How much is asked, from when on and for how long: not what is asked.
_LOAD = {
    "schema_version",
    "name",
    "smoke_test",
    "requests",
    "duration_s",
    "concurrency",
    "arrivals",
    "warmup_requests",
    "seed",
    "repeat",
    "timeout_s",
}
# Their rate is the load; how it is spread is part of the traffic only where it is not steady.
_STEADY = ("closed", "constant", "poisson")


def traffic_key(workload: Workload) -> str:
    """Equal for Workloads that differ in load, length, seed and name only."""
    return _key(workload.model_dump_json(exclude=_LOAD), workload.arrivals.kind)


@functools.lru_cache(maxsize=1024)
def _key(document: str, arrivals: str) -> str:
    spread = "" if arrivals in _STEADY else arrivals
    canonical = json.dumps([json.loads(document), spread], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
