"""``mcp-core quality RECIPE``: what a Recipe changes in replies (length drift) and in answers (task check).

This file does not know how either is measured (``evaluation/length_drift.py``, ``evaluation/task_check.py``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mcp_core import conflicts, hardware, texts
from mcp_core.commands.arguments import (
    add_json,
    add_progress,
    add_recipe,
    add_set,
    read_recipe,
    require_place,
    whole_number,
)
from mcp_core.commands.job_run import run_job
from mcp_core.commands.output import emit, say, table, write_file
from mcp_core.errors import InputError
from mcp_core.evaluation.endpoint_recipe import require_url
from mcp_core.evaluation.length_drift import LengthDrift
from mcp_core.evaluation.paired import Interval
from mcp_core.evaluation.task_check import TaskCheck, read_items
from mcp_core.recipe import Recipe

__all__ = ["add_arguments", "run"]

CHECKS = ("replies", "tasks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --check, --prompts, --items, --max-tokens, both URLs, --out, --progress, --set, --json."""
    add_recipe(parser)
    add_set(parser)
    add_json(parser)
    parser.add_argument(
        "--check", choices=(*CHECKS, "all"), default="all", help="lengths of replies, tasks, or both (default)"
    )
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="own prompts: .jsonl with prompt or messages")
    parser.add_argument(
        "--items", type=Path, metavar="FILE", help='own tasks: .jsonl with "question", "choices" and "answer"'
    )
    parser.add_argument(
        "--max-tokens",
        type=whole_number(1, 100_000),
        default=256,
        metavar="N",
        help="limit of a reply; default: 256",
    )
    parser.add_argument("--url", help="judge this running server, which serves the Recipe's model")
    parser.add_argument("--reference-url", metavar="URL", help="compare with this server instead of a worker")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the answer there, too")
    add_progress(parser)


def run(options: argparse.Namespace) -> int:
    """Ask both sides and print. Raises InputError for what is malformed, Busy, and what the jobs raise."""
    recipe = read_recipe(options)
    require_place(options.out)
    for url in filter(None, (options.url, options.reference_url)):
        require_url(url)
    if options.url is None:
        conflicts.require_runnable(recipe, hardware.detect())
    asked: dict[str, tuple[str, dict[str, Any]]] = {}  # all files are read before the first job takes its minutes
    if options.check in ("replies", "all"):
        asked["replies"] = ("length-drift", _prompts(options))
    if options.check in ("tasks", "all"):
        asked["tasks"] = ("task-check", _items(options))
    answer = {name: _ask(options, recipe, *each) for name, each in asked.items()}
    _write_out(options.out, answer)
    if options.json:
        emit(answer)
    else:
        _show(answer)
    return 0


def _ask(options: argparse.Namespace, recipe: Recipe, verb: str, request: dict[str, Any]) -> dict[str, Any]:
    """One job. It takes no device for itself: what is judged here is what is said, not how fast."""
    asked = {"recipe": recipe.model_dump(mode="json"), "url": options.url, "reference_url": options.reference_url}
    return run_job(
        verb,
        f"mcp-core quality {recipe.model.id}",
        asked | request,
        device=None,
        progress_as_json=options.progress == "json",
    )


def _prompts(options: argparse.Namespace) -> dict[str, Any]:
    given = options.prompts
    sha256 = None if given is None else texts.add(given.name, _content(given)).sha256
    return {"text_sha256": sha256, "max_tokens": options.max_tokens}


def _items(options: argparse.Namespace) -> dict[str, Any]:
    if options.items is None:
        return {"name": None, "items": None}
    items = read_items(options.items.name, _content(options.items))
    return {"name": options.items.name, "items": [item.model_dump() for item in items]}


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Give a file.") from error


def _write_out(path: Path | None, answer: dict[str, Any]) -> None:
    if path is None:
        return
    write_file(path, json.dumps(answer, indent=2, ensure_ascii=False) + "\n", "Give another --out.")


def _show(answer: dict[str, Any]) -> None:
    if "replies" in answer:
        _show_replies(LengthDrift.model_validate(answer["replies"]))
    if "tasks" in answer:
        _show_tasks(TaskCheck.model_validate(answer["tasks"]))


def _show_replies(drift: LengthDrift) -> None:
    say(f"Replies to {len(drift.pairs)} prompts, greedy, at most {drift.max_tokens} tokens: {drift.verdict}")
    table(
        [
            ("", "REFERENCE", "CANDIDATE"),
            ("served as", drift.reference, drift.candidate),
            ("tokens", *(f"{count:,}" for count in drift.tokens)),
            ("hit the limit", f"{drift.reference_capped:.0%}", f"{drift.candidate_capped:.0%}"),
        ]
    )
    say(f"length ratio {_interval(drift.ratio)}, same text {drift.identical:.0%}\n")


def _show_tasks(check: TaskCheck) -> None:
    say(f"{check.name}: {len(check.items)} items, guessing gets {check.chance:.0%}")
    table(
        [
            ("", "REFERENCE", "CANDIDATE"),
            ("served as", check.reference, check.candidate),
            ("right", f"{check.reference_accuracy:.1%}", f"{check.candidate_accuracy:.1%}"),
        ]
    )
    say(
        f"difference {_interval(check.difference)}, flips: {check.lost} lost, {check.won} won "
        f"(exact McNemar p {check.p:.3f})"
    )


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    ends = "" if interval.low is None else f" (95 %: {interval.low:.3f} to {interval.high:.3f})"
    return f"{interval.value:.3f}{ends}"
