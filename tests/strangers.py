"""A process that is nobody's: its parent has ended, and it leads a session of its own. And code for one to run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

# Should nobody end them, they do so themselves.
SPIN = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
SLEEP = "import time; time.sleep(60)"

_START = """
import subprocess, sys
nowhere = subprocess.DEVNULL
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], start_new_session=True, stdout=nowhere)
print(child.pid)
"""


@contextlib.contextmanager
def stranger(code: str = SLEEP) -> Iterator[int]:
    """Its process id, for as long as the block lasts."""
    started = subprocess.run([sys.executable, "-c", _START, code], stdout=subprocess.PIPE, text=True, check=True)
    pid = int(started.stdout)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
