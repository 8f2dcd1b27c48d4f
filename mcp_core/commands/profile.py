"""``mcp-core profile RECIPE --out DIR``: a short Run, then torch.profiler over the engine's steps; what both say.

Written are the trace (Chrome format, for Perfetto), its summary, and a folder for TensorBoard's profiler plugin.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mcp_core import devices, hardware
from mcp_core.commands.arguments import (
    CONTROL_VARIABLE,
    add_json,
    add_progress,
    add_recipe,
    add_set,
    control_token,
    hub_token,
    read_recipe,
    whole_number,
)
from mcp_core.commands.interrupts import run_until_stopped
from mcp_core.commands.output import ProgressReport, emit, note, say, table
from mcp_core.conflicts import require_runnable
from mcp_core.decision.store import Store
from mcp_core.errors import Cancelled, InputError, McpError, error_from
from mcp_core.evaluation.benchmark import measure
from mcp_core.evaluation.profile_job import profile
from mcp_core.evaluation.trace_store import KeptTrace, write_layout
from mcp_core.evaluation.why import Explanation, as_document, explain
from mcp_core.hardware import Hardware
from mcp_core.models import catalog
from mcp_core.models.architecture import ResolvedModel
from mcp_core.profile_plan import MOST_RECORDED, MOST_STEPS, ProfileLoad, ProfilePlan, require_traceable
from mcp_core.progress import ProgressTracker
from mcp_core.recipe import Recipe, validation_message
from mcp_core.results import Run
from mcp_core.serving.client import ServerClient
from mcp_core.serving.supervisor import Supervisor
from mcp_core.trace_summary import PhaseSummary, TraceSummary
from mcp_core.workload import Lengths, Workload

__all__ = ["add_arguments", "run"]

# The Run that the profile explains is short: so many requests a client.
_REQUESTS = 8
_REPLY_TOKENS = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, --out, the schedule, what is written down, the load, --url, --force, --progress, --set, --json."""
    add_recipe(parser)
    add_set(parser)
    add_json(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the trace, made if absent"
    )
    parser.add_argument(
        "--url",
        help=f"profile this running worker of ours; its control token is in {CONTROL_VARIABLE}, nothing is loaded",
    )
    _add_plan(parser)
    _add_load(parser)
    add_progress(parser)
    parser.add_argument("--force", action="store_true", help="load it even where it is estimated not to fit")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    plan = ProfilePlan()
    for name, least, default, what in (
        ("steps", 1, plan.steps, "engine steps to record"),
        ("wait", 0, plan.wait, "steps that pass unrecorded before"),
        ("warmup", 0, plan.warmup, "steps with the profiler on that are thrown away"),
        ("repeat", 1, plan.repeat, "how often wait, warmup and steps are gone through, a trace each"),
    ):
        count = whole_number(least, MOST_STEPS)
        parser.add_argument(
            f"--{name}", type=count, default=default, metavar="N", help=f"{what}; default: {default}"
        )
    parser.add_argument("--no-shapes", action="store_true", help="without the shapes of operators' inputs")
    parser.add_argument("--memory", action="store_true", help="with every allocation, but without tokenization")
    parser.add_argument("--stacks", action="store_true", help="with every Python call: slow, and a large file")


def _add_load(parser: argparse.ArgumentParser) -> None:
    load = ProfileLoad()
    for name, default, what in (
        ("concurrency", load.concurrency, "users who ask meanwhile"),
        ("prompt-tokens", load.prompt_tokens, "length of their prompts"),
        ("output-tokens", load.output_tokens, "length of their replies; short ones show prefill more often"),
    ):
        count = whole_number(1)
        parser.add_argument(
            f"--{name}", type=count, default=default, metavar="N", help=f"{what}; default: {default}"
        )


def run(options: argparse.Namespace) -> int:
    """Measure, record, explain, write, print. Raises InputError before anything is started, what loading and
    measuring raise, and Busy."""
    recipe, machine = read_recipe(options), hardware.detect()
    plan, load = _plan(options), _load(options)
    _require_folder(options.out)
    if not options.url:
        require_runnable(recipe, machine)
        require_traceable(recipe)
    elif control_token() is None:
        raise InputError(
            f"profile --url needs the worker's control token in {CONTROL_VARIABLE}.",
            f"Start it with the same: {CONTROL_VARIABLE}=... mcp-core serve RECIPE.",
        )
    with Store() as store:
        found = run_until_stopped(_Profile(recipe, machine, plan, load, store, options).run())
    try:
        answer = _write(options.out, *found)
    except OSError as error:
        raise McpError(
            f"{error.filename or options.out} cannot be written: {error.strerror}.",
            f"The trace is kept as {found[0][0].path}.",
        ) from error
    if options.json:
        emit(answer)
    else:
        _show(found[0][0].summary, found[1], answer)
    return 0


def _plan(options: argparse.Namespace) -> ProfilePlan:
    total = (options.wait + options.warmup + options.steps) * options.repeat
    if total > MOST_STEPS or options.steps > MOST_RECORDED or options.repeat > 10:
        raise InputError(
            f"That is too long: {MOST_RECORDED} steps a trace, 10 repeats, {MOST_STEPS} steps in all are the most.",
            "Ask for fewer --steps, --wait or --repeat.",
        )
    return ProfilePlan(
        steps=options.steps,
        wait=options.wait,
        warmup=options.warmup,
        repeat=options.repeat,
        shapes=not options.no_shapes,
        memory=options.memory,
        stacks=options.stacks,
    )


def _load(options: argparse.Namespace) -> ProfileLoad:
    try:
        return ProfileLoad(
            concurrency=options.concurrency,
            prompt_tokens=options.prompt_tokens,
            output_tokens=options.output_tokens,
        )
    except ValidationError as error:
        raise InputError(f"The load is not valid: {validation_message(error)}.", "See profile --help.") from error


class _Profile:
    """One profile of one worker; ``run`` gives the traces that were kept and what they say."""

    def __init__(
        self,
        recipe: Recipe,
        machine: Hardware,
        plan: ProfilePlan,
        load: ProfileLoad,
        store: Store,
        options: argparse.Namespace,
    ) -> None:
        self._recipe = recipe
        self._machine = machine
        self._plan = plan
        self._load = load
        self._store = store
        self._options = options
        self._report = ProgressReport(as_json=options.progress == "json")
        self._tracker = ProgressTracker(time.monotonic())

    async def run(self) -> tuple[tuple[KeptTrace, ...], Explanation]:
        """Raises Cancelled when it is stopped."""
        try:
            if self._options.url:
                return await self._of(self._options.url, control_token(), None)
            return await self._of_own_worker()
        except asyncio.CancelledError:
            raise Cancelled("The profile was stopped.", "Nothing was written.") from None

    async def _of_own_worker(self) -> tuple[tuple[KeptTrace, ...], Explanation]:
        supervisor, options = Supervisor(), self._options
        try:
            worker = await supervisor.start(
                self._recipe, hub_token=hub_token(), force=options.force, on_progress=self._report
            )
            assert worker.url is not None
            self._recipe = worker.recipe
            with devices.acquire(
                worker.recipe.device, "measure", "mcp-core profile", besides=[worker.lease.holder.id]
            ):
                return await self._of(worker.url, worker.token, worker.control_url)
        finally:
            await supervisor.close()

    async def _of(
        self, url: str, token: str | None, control_url: str | None
    ) -> tuple[tuple[KeptTrace, ...], Explanation]:
        async with ServerClient(url, token, control_url=control_url) as client:
            recipe = Recipe.from_dict((await client.state())["recipe"])  # says at once if that is no worker of ours
            require_traceable(recipe)
            measured = await measure(
                url,
                token,
                recipe,
                self._workload(),
                self._machine,
                on_progress=self._report,
                keep=self._store.add,
                control_url=control_url,
            )
            if measured.failure is not None:
                raise error_from(measured.failure.model_dump())
            kept = await profile(client, self._plan, self._load, self._tell, run_id=measured.id)
        return kept, self._explained(measured, kept[0].summary)

    def _workload(self) -> Workload:
        """The same requests with longer replies, without a profiler."""
        load = self._load
        reply = max(load.output_tokens, _REPLY_TOKENS)
        return Workload(
            name="profile",
            requests=_REQUESTS * load.concurrency,
            concurrency=load.concurrency,
            prompt_tokens=Lengths(min=load.prompt_tokens, max=load.prompt_tokens),
            output_tokens=Lengths(min=reply, max=reply),
            warmup_requests=load.concurrency,
            smoke_test=True,
        )

    def _tell(self, stage: str, fraction: float | None, message: str) -> None:
        self._tracker.update(stage, fraction, message, time.monotonic())
        self._report(self._tracker.view(time.monotonic()))

    def _explained(self, measured: Run, summary: TraceSummary) -> Explanation:
        model: ResolvedModel | None = None
        with contextlib.suppress(McpError):  # without its sizes the verdict knows less
            model = catalog.resolve(measured.recipe.model, hub_token=hub_token())
        telemetry = self._store.run_telemetry(measured.id)
        return explain(measured, self._machine, model=model, trace=summary, telemetry=telemetry)


def _require_folder(folder: Path) -> None:
    """Made now, before minutes are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made: {error.strerror}.", "Give --out the name of a folder."
        ) from error


def _write(folder: Path, kept: Sequence[KeptTrace], why: Explanation) -> dict[str, Any]:
    """The answer; every file that it names is there."""
    traces = []
    for number, each in enumerate(kept, start=1):
        trace = folder / ("trace.json.gz" if number == 1 else f"trace-{number}.json.gz")
        shutil.copyfile(each.path, trace)
        write_layout(each, folder)
        traces.append(str(trace))
    summary = kept[0].summary.model_copy(update={"path": traces[0]})
    (folder / "summary.json").write_text(summary.model_dump_json(indent=2) + "\n")
    files = {"trace": traces[0], "traces": traces, "summary": str(folder / "summary.json"), "logdir": str(folder)}
    return as_document(why) | files | {"trace_id": kept[0].id, "truncated": summary.truncated}


def _show(summary: TraceSummary, why: Explanation, answer: dict[str, Any]) -> None:
    say(f"{summary.title} on {summary.device}, {summary.events:,} events\n")
    phases = [(name, phase) for name in ("prefill", "decode") if (phase := summary.phase(name)) is not None]
    table([("PHASE", "STEPS", "STEP", "LARGEST PARTS, A STEP", "HOST GAP", "CALLS"), *map(_row, phases)])
    finding = why.verdict.finding
    say(f"\n{why.verdict.title}, confidence {finding.confidence}: {finding.sentence}")
    for line in finding.evidence:
        say(f"  {line.what}: {line.figure}{f' (limit {line.limit})' if line.limit else ''}")
    say(f"\ntrace    {answer['trace']}  (https://ui.perfetto.dev, or any viewer of Chrome traces)")
    say(f"summary  {answer['summary']}")
    say(f"folder   tensorboard --logdir {answer['logdir']}  (needs torch-tb-profiler)")
    if summary.truncated:
        note(summary.truncated)


def _row(named: tuple[str, PhaseSummary]) -> tuple[str, ...]:
    name, phase = named
    parts = ", ".join(f"{part} {spent:.2f}" for part, spent in list(phase.parts_ms.items())[:3])
    gap = f"{phase.host_gap_ms:.2f} ms"
    return name, str(phase.steps), f"{phase.step_ms:.2f} ms", f"{parts} ms", gap, f"{phase.launches:,.0f}"
