"""The server of a Bundle, started by the Bundle's own command from an interpreter that this machine's user named.

This file does not know what is measured on it, or what the command means.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mcp_core import devices, paths
from mcp_core.child_process import ChildProcess, signal_name
from mcp_core.decision.bundle import Bundle, Command, write
from mcp_core.engines import FOREIGN
from mcp_core.engines.interpreters import VARIABLES, interpreter, why_none
from mcp_core.errors import InputError, LoadFailed, McpError, RecipeError
from mcp_core.recipe import Recipe
from mcp_core.serving.client import ServerClient
from mcp_core.serving.supervisor import Supervisor

__all__ = ["command_of", "started"]

HOST = "127.0.0.1"
# A large model that is compiled and tuned.
READY_TIMEOUT_S = 1800.0
_ASK_EVERY_S = 0.5
_END_GRACE_S = 12.0


@asynccontextmanager
async def started(
    bundle: Bundle, recipe: Recipe, tell: Callable[[str], None], hub_token: str | None = None
) -> AsyncIterator[str]:
    """Its URL, for as long as the block lasts; all that it started is ended afterwards.

    MCP's own worker is started as ``mcp-core serve`` starts it, but under the lease that this job's parent holds.

    Raises InputError where the target is no server or its engine is not here, LoadFailed with its last words.
    """
    if bundle.command is not None and bundle.command.interpreter == "mcp-core":
        async with _worker(bundle, tell, hub_token) as url:
            yield url
        return
    folder = Path(tempfile.mkdtemp(dir=paths.home("engines")))
    try:
        write(bundle, folder / "bundle")
        port = _free_port()
        command = command_of(bundle, recipe, folder / "bundle", port)
        tell(f"starting {bundle.title}")
        log = folder / "log.txt"
        async with _running(bundle, command, folder, log, hub_token) as child:
            url = f"http://{HOST}:{port}"
            await _until_ready(child, url, bundle.title, log)
            yield url
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@asynccontextmanager
async def _worker(bundle: Bundle, tell: Callable[[str], None], hub_token: str | None) -> AsyncIterator[str]:
    supervisor = Supervisor(within=devices.leases_of(os.getppid()))
    try:
        recipe = Recipe.from_json(bundle.files["recipe.json"])
        tell(f"starting {bundle.title}")
        worker = await supervisor.start(recipe, hub_token=hub_token)
        assert worker.url is not None
        yield worker.url
    finally:
        await supervisor.close()


def command_of(bundle: Bundle, recipe: Recipe, folder: Path, port: int) -> tuple[str, ...]:
    """The Bundle's command with this machine's interpreter, its files where they lie, and a free port."""
    command = bundle.command
    if command is None:
        raise InputError(
            f"{bundle.title} is not started from here.",
            "Start it, and give its URL: mcp-core confirm DIR --url URL.",
        )
    arguments = list(command.arguments)
    arguments[arguments.index("--port") + 1] = str(port)  # not by its value: a context may be as many tokens
    placed = [str(folder / word) if _is_ours(word, bundle) else word for word in arguments]
    return (*_program(command, recipe), *placed)


def _program(command: Command, recipe: Recipe) -> tuple[str, ...]:
    if command.interpreter in FOREIGN:
        python = interpreter(command.interpreter, recipe.engine_python)
        if python is None:
            why = why_none(command.interpreter, recipe.engine_python)
            name = FOREIGN[command.interpreter].title
            raise RecipeError(
                f"{name} cannot be started here: {why}",
                f"Set {VARIABLES[command.interpreter]} to the Python that has it, or give a running server's URL.",
            )
        return (str(python),)
    return (sys.executable,)


def _is_ours(word: str, bundle: Bundle) -> bool:
    return word in bundle.files or any(name.startswith(f"{word}/") for name in bundle.files)


@asynccontextmanager
async def _running(
    bundle: Bundle, command: tuple[str, ...], folder: Path, log: Path, hub_token: str | None
) -> AsyncIterator[ChildProcess]:
    assert bundle.command is not None
    empty = folder / "empty"  # Python would import from the folder it is started in
    empty.mkdir()
    secrets = {"HF_TOKEN": hub_token} if hub_token else {}
    environment = {**bundle.command.environment, **secrets}
    order = {"command": command, "environment": environment, "folder": str(empty)}
    with log.open("wb") as output:
        shim = (sys.executable, "-m", "mcp_core.serving.kept_server")
        child = await ChildProcess.spawn(shim, json.dumps(order), output=output)
    try:
        yield child
    finally:
        child.let_go()
        if not await child.ends_within(_END_GRACE_S):
            await child.terminate(1.0)
        await child.wait()
        await child.close()


async def _until_ready(child: ChildProcess, url: str, title: str, log: Path) -> None:
    try:
        async with asyncio.timeout(READY_TIMEOUT_S), ServerClient(url) as client:
            if await _answers(child, client):
                return
    except TimeoutError:
        raise LoadFailed(
            f"{title} did not answer within {READY_TIMEOUT_S:g} s.", "Start it by hand, and give its URL."
        ) from None
    code = await child.wait()
    last = await asyncio.to_thread(_last_line, log)
    raise LoadFailed(
        f"{title} ended while loading ({signal_name(code)}). It said: {last[:300]}", "Start it by hand to see all."
    )


async def _answers(child: ChildProcess, client: ServerClient) -> bool:
    """Whether it comes to answer before it ends."""
    while not await child.ends_within(_ASK_EVERY_S):
        with contextlib.suppress(McpError):
            if await client.models():
                return True
    return False


def _last_line(log: Path) -> str:
    said = log.read_text(errors="replace").strip().splitlines()
    return said[-1] if said else "nothing"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
