"""What is accepted on a worker's socket sends small pieces at once; a port that cannot be had is said to be so."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mcp_core.errors import PortInUse
from mcp_core.serving.listener import HOST, bind, listen


def test_a_stream_s_pieces_do_not_wait_for_the_peer_to_acknowledge() -> None:
    """As uvicorn serves it: by asyncio, from a socket that is given."""
    settings = []

    async def look(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        settings.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def serve() -> None:
        listener = bind(0)
        async with await asyncio.start_server(look, sock=listener):
            reader, writer = await asyncio.open_connection(HOST, listener.getsockname()[1])
            await reader.read()
            writer.close()

    asyncio.run(serve())
    assert settings == [1]


def test_a_port_in_use_is_refused() -> None:
    with bind(0) as first, pytest.raises(PortInUse, match="in use"):
        bind(listen(first))


def test_a_number_that_is_no_port_is_refused() -> None:
    with pytest.raises(PortInUse, match="0 to 65535"):
        bind(70_000)
