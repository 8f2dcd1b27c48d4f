"""A foreign server that ends with whoever started it: ``python -m mcp_core.serving.kept_server``.

Stdin: one JSON line {command, environment, folder}; when stdin ends, the server and all that it started are ended.
This file does not know what the server is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

from mcp_core.serving.foreign_server import outside_environment
from mcp_core.serving.process_group import end_all, lead, members

__all__ = ["main"]

_GRACE_S = 5.0
_KILL_S = 2.0


def main() -> int:
    """Start it, and stay until it ends or stdin does; its exit code."""
    lead()
    order = json.loads(_first_line())
    server = subprocess.Popen(
        order["command"],
        stdin=subprocess.DEVNULL,
        cwd=order["folder"],
        env=outside_environment(order["environment"]),
    )
    asked = threading.Event()
    ending = threading.Thread(target=_end_with_stdin, args=(server, asked), daemon=True)
    ending.start()
    code = server.wait()
    if asked.is_set():
        ending.join()  # it knows those whose parent has ended since
    end_all(members(), _KILL_S)
    return code


def _end_with_stdin(server: subprocess.Popen[bytes], asked: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    known = members()
    asked.set()
    server.terminate()
    try:
        server.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()
    end_all(known, _KILL_S)


def _first_line() -> bytes:
    # Unbuffered: a daemon thread that sits in a buffered read crashes the interpreter as it shuts down.
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line or b"{}"


if __name__ == "__main__":
    sys.exit(main())
