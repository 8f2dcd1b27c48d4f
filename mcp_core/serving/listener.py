"""The worker's listening socket: taken before the model is loaded, opened when it can answer.

This file does not know what will listen on it.
"""

from __future__ import annotations

import errno
import socket

from mcp_core.errors import PortInUse

__all__ = ["HOST", "bind", "listen"]

HOST = "127.0.0.1"


def bind(port: int) -> socket.socket:
    """A socket on loopback that refuses connections until ``listen``; port 0 takes any. Raises PortInUse."""
    # asyncio switches Nagle's algorithm off for sockets that name their protocol, and for no others: with it a
    # first token waited up to 40 ms for the peer to acknowledge the headers before it.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A port whose last connections still linger is free to take.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise _refused(port, error) from error
    return listener


def listen(listener: socket.socket) -> int:
    """Accept connections from now; returns the port. Raises PortInUse when another was faster."""
    port: int = listener.getsockname()[1]
    try:
        listener.listen(1024)
    except OSError as error:
        raise _refused(port, error) from error
    return port


def _refused(port: int, error: OSError | OverflowError) -> PortInUse:
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return PortInUse(f"Port {port} is in use.", "Choose another, or 0 for any free one.")
    reason = error.strerror if isinstance(error, OSError) else "ports go from 0 to 65535"
    return PortInUse(f"Port {port} cannot be used: {reason}.", "Choose another, or 0 for any free one.")
