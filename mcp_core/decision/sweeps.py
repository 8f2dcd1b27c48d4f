"""Sweeps: sweeps and their cells in the results store, written step by step so that a killed one can go on.

A Run is named here before it is stored; only one that is in the store counts, so that neither a step is done twice
nor one is taken for done that is not. This file does not know what a step does (``evaluation/sweep.py``).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from mcp_core import devices
from mcp_core.decision.counterparts import is_of_device
from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import CellRecord, CellStage, CellState, SweepRecord, SweepRun, SweepState
from mcp_core.errors import Busy, InputError
from mcp_core.hardware import Hardware
from mcp_core.recipe import Recipe
from mcp_core.results import Failure, new_run_id, now
from mcp_core.sweep_plan import SweepPlan

__all__ = ["Sweeps"]

_metadata = sa.MetaData()
_sweeps = sa.Table(
    "sweeps",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("created", sa.String(40)),
    sa.Column("fingerprint", sa.String(64)),
    sa.Column("state", sa.String(16)),
    sa.Column("host", sa.Text),
    sa.Column("device", sa.String(16)),
    sa.Column("owner", sa.Text),
    sa.Column("message", sa.Text),
    sa.Column("plan", sa.Text),
)
_cells = sa.Table(
    "sweep_cells",
    _metadata,
    sa.Column("sweep_id", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(16)),
    sa.Column("stage", sa.String(16)),
    sa.Column("name", sa.Text),
    sa.Column("recipe", sa.Text),
    sa.Column("failure", sa.Text),
)
_links = sa.Table(
    "sweep_runs",
    _metadata,
    sa.Column("run_id", sa.String(64), primary_key=True),
    sa.Column("sweep_id", sa.String(64)),
    sa.Column("position", sa.Integer),
    sa.Column("stage", sa.String(16)),
    sa.Column("start", sa.Integer),
    sa.Column("final", sa.Integer),
)
_runs = sa.table("runs", sa.column("id"))


class Sweeps:
    """The sweeps of one store. Every method raises StoreError when that cannot be used."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, plan: SweepPlan, cells: Sequence[CellRecord], hardware: Hardware, device: str) -> str:
        """Write a new sweep that this process works on, and return its id."""
        row = {
            "id": new_run_id(),
            "created": now().isoformat(timespec="microseconds"),
            "fingerprint": plan.fingerprint,
            "state": "running",
            "host": hardware.host,
            "device": device,
            "owner": _owner(),
            "message": "",
            "plan": plan.model_dump_json(),
        }
        with self._store.writing() as connection:
            connection.execute(_sweeps.insert().values(row))
            connection.execute(_cells.insert(), [_cell_row(row["id"], cell) for cell in cells])
        return row["id"]

    def claim(self, sweep_id: str, hardware: Hardware) -> SweepRecord:
        """Go on with a sweep: this process works on it from now on.

        Raises InputError for an unknown one, one that is done, or one of another machine whose figures would be
        mixed with ours; Busy while another process works on it.
        """
        with self._store.reading() as connection:
            owner = connection.scalar(sa.select(_sweeps.c.owner).where(_sweeps.c.id == sweep_id))
        record = self.get(sweep_id)
        if record is None:
            raise InputError(f'There is no sweep "{sweep_id}".', "mcp-core sweep PLAN starts one.")
        if record.host != hardware.host:
            raise InputError(
                f"Sweep {sweep_id} was begun on {record.host}; this is {hardware.host}.",
                "Resume it there, or start it anew here.",
            )
        begun = next((run for run in map(self._store.get, record.run_ids) if run is not None), None)
        if begun is not None and not is_of_device(begun, hardware, record.device):
            raise InputError(
                f"Sweep {sweep_id} was begun on another device than this machine's {record.device}.",
                "Resume it there, or start it anew here.",
            )
        if record.state == "done":
            raise InputError(f"Sweep {sweep_id} has come to its end.", "Start it anew to measure once more.")
        # Of two that come at once, one finds the owner that both have read.
        unclaimed = sa.and_(_sweeps.c.id == sweep_id, _sweeps.c.owner == owner)
        change = {"state": "running", "owner": _owner(), "message": ""}
        if record.state != "running":
            with self._store.writing() as connection:
                if connection.execute(_sweeps.update().where(unclaimed).values(change)).rowcount:
                    return record
        raise Busy(f"Sweep {sweep_id} is running already.", "Wait until it ends, or cancel it.")

    def newest(self, plan: SweepPlan) -> SweepRecord | None:
        """The newest sweep by this plan, whatever its name; None when there is none."""
        query = sa.select(_sweeps.c.id).where(_sweeps.c.fingerprint == plan.fingerprint)
        with self._store.reading() as connection:
            sweep_id = connection.scalar(query.order_by(_sweeps.c.created.desc()).limit(1))
        return None if sweep_id is None else self.get(sweep_id)

    def get(self, sweep_id: str) -> SweepRecord | None:
        """One sweep, or None."""
        with self._store.reading() as connection:
            row = connection.execute(sa.select(_sweeps).where(_sweeps.c.id == sweep_id)).mappings().first()
            return None if row is None else _record(connection, row)

    def list(self, limit: int = 20) -> tuple[SweepRecord, ...]:
        """Sweeps, newest first."""
        newest = sa.select(_sweeps).order_by(_sweeps.c.created.desc()).limit(limit)
        with self._store.reading() as connection:
            rows = connection.execute(newest).mappings().all()
            return tuple(_record(connection, row) for row in rows)

    def set_cell(
        self,
        sweep_id: str,
        position: int,
        state: CellState,
        stage: CellStage | None = None,
        failure: Failure | None = None,
    ) -> None:
        """Write how far a cell is."""
        change = {"state": state, "failure": failure.model_dump_json() if failure else None}
        if stage is not None:
            change["stage"] = stage
        of_cell = sa.and_(_cells.c.sweep_id == sweep_id, _cells.c.position == position)
        with self._store.writing() as connection:
            connection.execute(_cells.update().where(of_cell).values(change))

    def link(self, sweep_id: str, position: int, run: SweepRun) -> None:
        """Name a Run of a cell, which is about to be stored or is there already."""
        row = {"sweep_id": sweep_id, "position": position} | asdict(run) | {"final": int(run.final)}
        with self._store.writing() as connection:
            connection.execute(_links.delete().where(_links.c.run_id == run.run_id))
            connection.execute(_links.insert().values(row))

    def end(self, sweep_id: str, state: SweepState, message: str = "") -> None:
        """Write how it ended; a cell that was at work waits again."""
        with self._store.writing() as connection:
            at_work = sa.and_(_cells.c.sweep_id == sweep_id, _cells.c.state == "running")
            connection.execute(_cells.update().where(at_work).values(state="pending"))
            change = {"state": state, "message": message, "owner": ""}
            connection.execute(_sweeps.update().where(_sweeps.c.id == sweep_id).values(change))


def _owner() -> str:
    return json.dumps({"pid": os.getpid(), "started_s": devices.process_started_s(os.getpid())})


def _cell_row(sweep_id: str, cell: CellRecord) -> dict[str, Any]:
    return {
        "sweep_id": sweep_id,
        "position": cell.position,
        "state": cell.state,
        "stage": cell.stage,
        "name": cell.name,
        "recipe": cell.recipe.model_dump_json(),
        "failure": cell.failure.model_dump_json() if cell.failure else None,
    }


def _record(connection: sa.Connection, row: Any) -> SweepRecord:
    in_order = sa.select(_cells).where(_cells.c.sweep_id == row["id"]).order_by(_cells.c.position)
    cells = connection.execute(in_order).mappings().all()
    runs = _runs_of(connection, row["id"])
    return SweepRecord(
        id=row["id"],
        created=datetime.fromisoformat(row["created"]),
        plan=SweepPlan.from_json(row["plan"]),
        state=_state(row),
        host=row["host"],
        device=row["device"],
        cells=tuple(_cell(cell, runs.get(cell["position"], ())) for cell in cells),
        message=row["message"] or "",
    )


def _runs_of(connection: sa.Connection, sweep_id: str) -> dict[int, tuple[SweepRun, ...]]:
    """By the cell's position; a Run that was named and never stored, or was deleted, is none."""
    stored = sa.select(_links).join(_runs, _runs.c.id == _links.c.run_id).where(_links.c.sweep_id == sweep_id)
    found: dict[int, tuple[SweepRun, ...]] = {}
    for row in connection.execute(stored.order_by(_links.c.run_id)).mappings():
        run = SweepRun(row["run_id"], row["stage"], row["start"], bool(row["final"]))
        found[row["position"]] = (*found.get(row["position"], ()), run)
    return found


def _cell(row: Any, runs: tuple[SweepRun, ...]) -> CellRecord:
    return CellRecord(
        position=row["position"],
        name=row["name"],
        recipe=Recipe.from_json(row["recipe"]),
        state=row["state"],
        stage=row["stage"],
        failure=Failure.model_validate_json(row["failure"]) if row["failure"] else None,
        runs=runs,
    )


def _state(row: Any) -> SweepState:
    """Of one that is running, whether its process still is. Another machine's cannot be asked."""
    state: SweepState = row["state"]
    if state != "running" or row["host"] != platform.node():
        return state
    owner = json.loads(row["owner"] or "{}")
    alive = bool(owner) and devices.is_alive(owner["pid"], owner["started_s"] or 0.0)
    return "running" if alive else "interrupted"
