"""``mcp-core doctor``: what this machine has, what a Recipe can use of it, and whether MCP's parts are there.

With --measure, first what its devices reach at most: a few seconds each, kept under MCP_HOME.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from mcp_core import conflicts, hardware, paths
from mcp_core.ceilings import PRODUCTS, Ceilings
from mcp_core.commands.arguments import add_json, add_progress, whole_number
from mcp_core.commands.job_run import run_job
from mcp_core.commands.output import emit, say, size, table
from mcp_core.decision.store import Store
from mcp_core.engines import FOREIGN
from mcp_core.engines.interpreters import interpreter
from mcp_core.errors import McpError
from mcp_core.hardware import Hardware
from mcp_core.models import catalog
from mcp_core.monitoring.nvml import nvml_reason
from mcp_core.recipe import Attention, KVCache, Recipe, SchemeName
from mcp_core.serving.foreign_server import version_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--measure, --threads, --progress, --json."""
    parser.add_argument(
        "--measure", action="store_true", help="measure bandwidth and FLOP/s of every device first, and keep them"
    )
    parser.add_argument(
        "--threads",
        type=whole_number(1, 1024),
        metavar="N",
        help="CPU threads to measure with; default: as many as a Recipe gets",
    )
    add_progress(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Look and print; finding something missing is an answer, not a failure. --measure raises Busy."""
    if options.measure:
        _measure(options.threads, as_json=options.progress == "json")
    found = _look()
    if options.json:
        emit(found)
    else:
        _show(found)
    return 0


def _measure(threads: int | None, *, as_json: bool) -> None:
    """Every device that torch can use, one after the other."""
    machine = hardware.detect()
    usable = [each for each in machine.devices if each.kind == "cpu" or machine.torch_cuda]
    for device in usable:
        recipe = conflicts.resolve(Recipe(device=device.id, threads=threads), machine)
        request = {"device": recipe.device, "threads": recipe.threads}
        run_job("ceilings", f"ceilings of {device.id}", request, device=device.id, progress_as_json=as_json)


def _look() -> dict[str, Any]:
    machine = hardware.detect()
    return machine.model_dump(mode="json") | {
        "nvidia_reason": nvml_reason(),
        "engines": _engines(machine),
        "schemes": _choices(machine, "quantization.scheme", get_args(SchemeName)),
        "attention": _choices(machine, "attention", get_args(Attention)),
        "kv_kinds": _choices(machine, "kv.kind", get_args(KVCache.model_fields["kind"].annotation)),
        "bundled_model": _try(lambda: str(catalog.bundled_gguf())),
        "home": _try(lambda: str(paths.home())),
        "store": _try(_store),
    }


def _choices(machine: Hardware, field: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Each value of a field of the Recipe, and why this machine cannot honour it."""
    rows = []
    for name in names:
        conflicts = Recipe().replace({field: name}).conflicts(machine)
        reason = next((conflict.reason for conflict in conflicts if conflict.field == field), None)
        rows.append({"name": name, "available": reason is None, "reason": reason})
    return rows


# A Recipe that each engine could serve, so that what stands against it is the engine itself.
_SERVED: dict[str, dict[str, Any]] = {
    "transformers": {},
    "llama.cpp": {"quantization.scheme": "gguf"},
    "vllm": {"model": {"source": "shape", "id": "llama-2-7b"}},
    "sglang": {"model": {"source": "shape", "id": "llama-2-7b"}},
}


def _engines(machine: Hardware) -> list[dict[str, Any]]:
    """Each engine, why it cannot run here and what helps, and the version that its interpreter has."""
    rows = []
    for name, changes in _SERVED.items():
        conflicts = Recipe().replace(changes | {"engine": name}).conflicts(machine)
        against = next((conflict for conflict in conflicts if conflict.field == "engine"), None)
        reason, fix = (against.reason, against.fix) if against else (None, None)
        python = interpreter(name, None) if name in FOREIGN else None
        version = _version(name, python) if python else None
        rows.append({"name": name, "available": not against, "reason": reason, "fix": fix, "version": version})
    return rows


def _version(engine: str, python: Path) -> str:
    """What this interpreter has, or why it has not."""
    try:
        return asyncio.run(version_of(python, FOREIGN[engine].package, FOREIGN[engine].title))
    except McpError as error:
        return error.message


def _store() -> str:
    with Store() as store:
        return f"{store.address} ({store.count()} Runs)"


def _try(look: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"ok": True, "detail": look(), "hint": ""}
    except McpError as error:
        return {"ok": False, "detail": error.message, "hint": error.hint}
    except OSError as error:
        return {"ok": False, "detail": str(error), "hint": "Set MCP_HOME to a folder that can be written."}


def _show(found: dict[str, Any]) -> None:
    say(f"{found['host']}: {found['os']}, Python {found['python']}, {found['cores']} cores")
    say(f"CPU instructions: {', '.join(found['cpu_flags']) or 'none of those that matter here'}")
    if found["nvidia_reason"]:
        say(f"NVIDIA: none ({found['nvidia_reason']})")
    say("")
    devices = [
        (each["id"], each["name"], size(each["memory_total_bytes"]), size(each["memory_free_bytes"]))
        for each in found["devices"]
    ]
    table([("DEVICE", "NAME", "MEMORY", "FREE"), *devices])
    say("")
    _show_ceilings([Ceilings.model_validate(each) for each in found["ceilings"]])
    table([("ENGINE", "CAN RUN", "WHY NOT", "VERSION"), *(_engine_cells(each) for each in found["engines"])])
    say("")
    for title, key in (("SCHEME", "schemes"), ("ATTENTION", "attention"), ("KV CACHE", "kv_kinds")):
        table([(title, "CAN RUN", "WHY NOT"), *(_cells(each) for each in found[key])])
        say("")
    table([("LIBRARY", "VERSION"), *found["libraries"].items()])
    say("")
    parts = [(key.replace("_", " "), *_state(found[key])) for key in ("bundled_model", "home", "store")]
    table([("PART", "STATE", ""), *parts])


def _show_ceilings(found: list[Ceilings]) -> None:
    if not found:
        say("What the devices reach at most was not measured: mcp-core doctor --measure\n")
        return
    heading = ("CEILINGS", "THREADS", "READ", "COPY", *(f"{name} TFLOP/S" for name in PRODUCTS), "TINY OPERATION")
    table([heading, *(_ceiling_cells(each) for each in found)])
    say("")


def _ceiling_cells(each: Ceilings) -> tuple[str, ...]:
    products = (each.matmul_flop_s.get(name) for name in PRODUCTS)
    return (
        each.device,
        str(each.threads or ""),
        f"{size(round(each.read_bytes_s))}/s",
        f"{size(round(each.copy_bytes_s))}/s",
        *("" if flop_s is None else f"{flop_s / 1e12:.3g}" for flop_s in products),
        f"{each.op_us:.1f} us",
    )


def _cells(choice: dict[str, Any]) -> tuple[str, str, str]:
    return choice["name"], "yes" if choice["available"] else "no", choice["reason"] or ""


def _engine_cells(engine: dict[str, Any]) -> tuple[str, str, str, str]:
    name, can_run, reason = _cells(engine)
    return name, can_run, f"{reason} {engine['fix'] or ''}".strip(), engine["version"] or ""


def _state(part: dict[str, Any]) -> tuple[str, str]:
    return "ok" if part["ok"] else "MISSING", " ".join((part["detail"], part["hint"])).strip()
