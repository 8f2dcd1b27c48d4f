"""Runs whose truth is planted: a latency law gives every request's times, and nothing else is measured."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from mcp_core.decision.facts import RunFacts
from mcp_core.evaluation.metrics import summarize
from mcp_core.evaluation.request_samples import RequestSamples
from mcp_core.hardware import Device, Hardware
from mcp_core.presets import bundled
from mcp_core.recipe import Recipe
from mcp_core.results import Comparable, Failure, Memory, RequestRecord, Run
from mcp_core.workload import Workload

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
TRAFFIC = Workload(name="chat-like", requests=400, prompt_tokens=100, output_tokens=50)
GPU = "Planted GPU"


def machine(
    device: str = GPU, driver: str = "580.1", *, card: str | None = None, host: str = "planted", cpu: str = "CPU"
) -> Hardware:
    """A machine with one GPU; ``card`` is that GPU's identifier."""
    size = 80 * 10**9
    gpu = Device(id="cuda:0", kind="cuda", name=device, memory_total_bytes=size, memory_free_bytes=size, uuid=card)
    host_cpu = Device(id="cpu", kind="cpu", name=cpu, memory_total_bytes=10**11, memory_free_bytes=10**11)
    return Hardware(
        host=host,
        os="Linux",
        python="3.12",
        cpu=cpu,
        cores=8,
        cpu_flags=(),
        devices=(host_cpu, gpu),
        driver=driver,
        torch_cuda="13.0",
        libraries={"torch": "2.12.0", "transformers": "5.23.0"},
    )


@dataclass(frozen=True)
class Law:
    """How an endpoint answers: its times at one user, and how they grow with users.

    TPOT(n) = tpot_ms * (1 + n / users_ms); TTFT(n) = ttft_ms * (1 + n / users_ttft); beyond ``kv_users`` every
    further user waits for a whole reply before its own begins.
    """

    ttft_ms: float = 100.0
    tpot_ms: float = 20.0
    users_tpot: float = 50.0
    users_ttft: float = 20.0
    kv_users: float = math.inf
    failing: float = 0.0
    slow: float = 0.0
    slow_factor: float = 10.0
    noise: float = 0.02
    start_noise: float = 0.005
    peak_bytes: int = 10 * 10**9
    changes: dict[str, Any] = field(default_factory=dict)

    def ttft(self, users: float) -> float:
        waiting = max(0.0, users - self.kv_users) / max(users, 1)
        return self.ttft_ms * (1 + users / self.users_ttft) + waiting * 50 * self.tpot(users)

    def tpot(self, users: float) -> float:
        return self.tpot_ms * (1 + users / self.users_tpot)

    @property
    def recipe(self) -> Recipe:
        return bundled().replace({"device": "cuda:0", **self.changes})


def planted_run(
    law: Law,
    users: int,
    *,
    seed: int = 0,
    start: int = 0,
    minutes: float | None = None,
    drift: float = 0.0,
    requests: int = 400,
    reasons: Sequence[str] = (),
    **rest: Any,
) -> tuple[Run, list[RequestRecord]]:
    """A Run of ``users`` closed-loop clients, as the law has it. ``start`` is the process start it belongs to."""
    generator = np.random.default_rng([seed, start, zlib.crc32(repr(law).encode())])
    slower = math.exp(generator.normal(0, law.start_noise) + drift)
    records = [_record(law, users, index, generator, slower) for index in range(requests)]
    busy_ms = sum(record.e2e_ms or 1.0 for record in records)
    workload = TRAFFIC.replace({"concurrency": users, "requests": requests, "repeat": start})
    when = BEGIN + timedelta(minutes=10 * start if minutes is None else minutes)
    run = Run(
        id=f"{law.recipe.fingerprint[:6]}-{users}-{start}-{seed}-{rest.pop('tag', '')}",
        created=when,
        recipe=law.recipe,
        workload=workload,
        hardware=rest.pop("hardware", machine()),
        status="ok",
        versions=rest.pop("versions", {"torch": "2.12.0", "transformers": "5.23.0", "mcp-core": "0.1.0"}),
        measurement=summarize(records, busy_ms / users / 1e3),
        memory=Memory(weights_bytes=law.peak_bytes // 2, peak_bytes=law.peak_bytes),
        load_s=10 + float(generator.random()),
        comparable=Comparable(ok=not reasons, reasons=tuple(reasons)),
        **rest,
    )
    return run, records


def _record(law: Law, users: int, index: int, generator: np.random.Generator, slower: float) -> RequestRecord:
    if law.failing and index % round(1 / law.failing) == 0:
        failure = Failure(kind="error", message="planted")
        return RequestRecord(index=index, status="failed", sent_ms=0, failure=failure)
    factor = slower * math.exp(generator.normal(0, law.noise))
    factor *= law.slow_factor if law.slow and index % round(1 / law.slow) == 0 else 1.0
    ttft_ms, tpot_ms = law.ttft(users) * factor, law.tpot(users) * factor
    chunk_ms = (ttft_ms, ttft_ms + 49 * tpot_ms)  # two chunks stand for fifty, to be quick
    return RequestRecord(
        index=index,
        status="ok",
        sent_ms=0,
        ttft_ms=ttft_ms,
        e2e_ms=chunk_ms[-1],
        chunk_ms=chunk_ms,
        chunk_tokens=(1, 49),
        prompt_tokens=100,
        output_tokens=50,
    )


class Planted:
    """Facts and samples as the store would give them."""

    def __init__(self, pairs: Sequence[tuple[Run, list[RequestRecord]]]) -> None:
        self.runs = [run for run, _ in pairs]
        self.facts = [RunFacts.of(run) for run in self.runs]
        self._samples = {run.id: RequestSamples.of(records) for run, records in pairs}

    def samples(self, run_ids: Sequence[str]) -> dict[str, RequestSamples]:
        return {run_id: self._samples[run_id] for run_id in run_ids if run_id in self._samples}
