"""The one Workbench of this server: the only st.cache_resource.

Call ``workbench.get_workbench()`` through this module (tests put a fake in its place).
This file does not know what the Workbench does.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

import streamlit as st

from pages._ui import session

if TYPE_CHECKING:
    from mcp_core.views import WorkerView
    from mcp_core.workbench import Workbench

_USEFUL = ("ready", "starting", "failed", "died")


@st.cache_resource(show_spinner=False)
def get_workbench() -> Workbench:
    """The Workbench, started by the first visitor and closed when the server ends.

    Streamlit turns SIGINT and SIGTERM into a normal exit, so atexit closes it; after a SIGKILL its workers end
    by themselves when their pipe does.
    """
    from mcp_core.workbench import Workbench

    workbench = Workbench()
    atexit.register(workbench.close)
    return workbench


def others_using(worker_id: str) -> int:
    """How many conversations of other browsers are open on that worker; this visitor's own does not count."""
    own = session.conversation_id()
    mine = get_workbench().conversation(own) if own else None  # looking at it counts it among the users
    worker = get_workbench().worker(worker_id)
    users = worker.users if worker else 0
    return max(0, users - (mine is not None and mine.worker_id == worker_id))


def current_worker() -> WorkerView | None:
    """The worker this visitor selected if it is still there, else the most useful one (ready first, newest)."""
    workers = [worker for worker in get_workbench().workers() if worker.state in _USEFUL]
    for worker in workers:
        if worker.id == session.worker_id():
            return worker
    newest_first = reversed(workers)
    return min(newest_first, key=lambda worker: _USEFUL.index(worker.state), default=None)
