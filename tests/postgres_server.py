"""A private PostgreSQL server out of Debian's package, for tests: in a folder of its own, on a free loopback port.

It ends with the process that started it. This file does not know what is stored.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from sqlalchemy.engine import URL

PASSWORD = "s3cret-word"
MISSING = "no PostgreSQL server: apt-get install postgresql"
_DEADLINE_S = 60


def binaries() -> Path | None:
    """The folder of initdb and postgres; None where the package is not installed."""
    on_path = shutil.which("initdb")
    found = [Path(on_path).parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((each for each in reversed(found) if (each / "initdb").exists()), None)


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs. Its superuser has PASSWORD, which it asks for."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    def url(self, database: str = "postgres", **changes: str | int) -> str:
        """As a user writes it into MCP_STORE_URL, with the password."""
        whole = URL.create("postgresql", "postgres", PASSWORD, "127.0.0.1", self.port, database)
        return whole.set(**changes).render_as_string(hide_password=False)

    def fresh_url(self) -> str:
        """Of a database that nobody else has, empty."""
        name = f"mcp_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
        return self.url(name)

    def stop(self) -> None:
        """At once; whoever is connected is thrown out."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(_DEADLINE_S)


@contextmanager
def running(programs: Path) -> Iterator[Server]:
    """A server with an empty cluster; the folder is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="mcp-pg-") as name:
        folder = Path(name)
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:  # initdb and postgres refuse root
            shutil.chown(folder, "postgres", "postgres")
        _make_cluster(programs, folder)
        server = _start(programs, folder)
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.stop()


def _command(program: Path, *arguments: str) -> list[str]:
    """Not as root, and (on Linux) ended when this process is."""
    root = os.geteuid() == 0
    other = ["--reuid=postgres", "--regid=postgres", "--clear-groups"] if root else []
    return ["setpriv", "--pdeathsig=INT", *other, str(program), *arguments]


def _make_cluster(programs: Path, folder: Path) -> None:
    arguments = ("-D", str(folder / "data"), "-U", "postgres", "--pwfile", str(folder / "password"))
    options = ("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
    subprocess.run(
        _command(programs / "initdb", *arguments, *options), check=True, capture_output=True, timeout=_DEADLINE_S
    )


def _start(programs: Path, folder: Path) -> Server:
    port = _free_port()
    settings = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder}
    arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    command = _command(programs / "postgres", "-D", str(folder / "data"), *arguments)
    with (folder / "log").open("wb") as log:
        server = Server(port, folder, subprocess.Popen(command, stdout=log, stderr=log))
    deadline_s = time.monotonic() + _DEADLINE_S
    while not _answers(server):
        if server.process.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError((folder / "log").read_text())
        time.sleep(0.05)
    return server


def _answers(server: Server) -> bool:
    """It takes connections before it serves any."""
    try:
        psycopg.connect(server.url()).close()
    except psycopg.OperationalError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])
