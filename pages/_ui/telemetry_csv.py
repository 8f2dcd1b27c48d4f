"""A window of series as CSV.

This file does not know which series there are.
"""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime

from mcp_core.monitoring.history import Window
from mcp_core.monitoring.run_telemetry import WORKER

__all__ = ["csv_text"]


def csv_text(window: Window) -> str:
    """Of each row its time, the seconds it stands for, gauges as means, counters as what was added.

    A worker's columns are named after its id; a Run has only one. Unmeasured is empty.
    """
    columns = [*((name, window.mean(name)) for name in window.gauges)]
    columns += ((name, window.added(name)) for name in window.counters)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["time_utc", "seconds", *(_column(window, name) for name, _ in columns)])
    for position, row in enumerate(window.rows):
        moment = datetime.fromtimestamp(row.at_s, UTC).isoformat(timespec="milliseconds")
        writer.writerow([moment, round(row.seconds, 3), *(points[position][1] for _, points in columns)])
    return out.getvalue()


def _column(window: Window, name: str) -> str:
    scope = name.partition(".")[0]
    prefix = "worker_" if scope in window.workers and scope != WORKER else ""
    return prefix + name.replace(".", "_")
