"""A real engine around a shape of random weights, asked and recorded in this process; what it did as a Run.

For tests of verdicts: there is no HTTP and no page between the planted cause and what is found.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp_core import hardware
from mcp_core.ceilings import Ceilings
from mcp_core.evaluation.benchmark import engine_work
from mcp_core.evaluation.chrome_trace import read_trace
from mcp_core.evaluation.metrics import summarize
from mcp_core.evaluation.trace_finishing import finished
from mcp_core.evaluation.trace_reading import summarize as read_steps
from mcp_core.evaluation.why import Explanation, explain
from mcp_core.generation import GenerationRequest, Sampling, TokenEvent
from mcp_core.inference.engine import Engine
from mcp_core.models import catalog, loader
from mcp_core.profile_plan import ProfilePlan
from mcp_core.recipe import Recipe
from mcp_core.results import RequestRecord, Run, now
from mcp_core.trace_summary import TraceSummary
from mcp_core.workload import Lengths, Workload

SMALL = {"layers": 2, "hidden": 64, "intermediate": 128, "heads": 4, "kv_heads": 2, "vocab": 300, "context": 512}
WIDE = SMALL | {"hidden": 768, "intermediate": 2048, "heads": 8, "kv_heads": 8, "context": 2048}


@dataclass
class Ends:
    """A sink that knows when each request ended, and how."""

    at_s: dict[str, float] = field(default_factory=dict)
    last: dict[str, TokenEvent] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, events: list[TokenEvent]) -> None:
        ended = [event for event in events if event.finish is not None]
        if not ended:
            return  # nobody is woken in the middle of a reply: it would want the interpreter's lock
        with self.changed:
            for event in ended:
                self.at_s[event.request_id], self.last[event.request_id] = event.at_s, event
            self.changed.notify_all()

    def wait(self, ids: list[str]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: all(each in self.last for each in ids), 60.0)


class Served:
    """A model of random weights in a real engine, on this thread's CPU."""

    def __init__(self, shape: dict[str, Any], **changes: Any) -> None:
        named = {"model": {"source": "shape", "id": "custom", "shape": shape}, "device": "cpu", "threads": 1}
        named |= {"dtype": "fp32"} | {key.replace("__", "."): value for key, value in changes.items()}
        self.recipe = Recipe().replace(named)
        self.model = catalog.resolve(self.recipe.model)
        loaded = loader.load(self.model, self.recipe, lambda *_: None, None)
        self.ends = Ends()
        self.engine = Engine(loaded, self.recipe, self.ends)
        self.engine.warm_up()
        self.engine.start()
        self._asked = 0

    def ask(self, clients: int, prompt: int, output: int) -> list[GenerationRequest]:
        """All at once, with new prompts; returns when all have ended."""
        requests = []
        for _ in range(clients):
            self._asked += 1
            ids = tuple(3 + (7 * at + 13 * self._asked) % 250 for at in range(prompt))
            requests.append(
                GenerationRequest(
                    f"r{self._asked}",
                    ids,
                    output,
                    Sampling(temperature=0),
                    min_tokens=output,
                    ignore_eos=True,
                    arrived_s=time.perf_counter(),
                )
            )
            self.engine.submit(requests[-1])
        self.ends.wait([each.id for each in requests])
        return requests

    def trace(self, folder: Path, clients: int, prompt: int, output: int) -> TraceSummary:
        """A few steps of the same work, recorded."""
        found: list[Any] = []
        thread = threading.Thread(
            target=lambda: found.extend(self.engine.profile(ProfilePlan(steps=4, warmup=1), folder, 30.0))
        )
        thread.start()
        while thread.is_alive():
            self.ask(clients, prompt, output)
        (raw,) = found
        about = {"trace_id": "t", "device": self.recipe.device, "run_id": "real"}
        return read_steps(finished(read_trace(Path(raw.path)), raw.steps, about))


def explained(
    served: Served,
    ceilings: Ceilings,
    folder: Path | None,
    *,
    clients: int = 1,
    prompt: int = 32,
    output: int = 24,
    rounds: int = 3,
) -> Explanation:
    """Measured first, recorded after; ``folder`` None: not recorded."""
    served.ask(clients, prompt, output)
    before, began_s, asked = served.engine.stats(), time.perf_counter(), []
    for _ in range(rounds):
        asked += served.ask(clients, prompt, output)
    took_s, after = time.perf_counter() - began_s, served.engine.stats()
    records = [_record(served.ends, index, each) for index, each in enumerate(asked)]
    machine = hardware.detect().model_copy(update={"ceilings": (ceilings,)})
    lengths = {"prompt_tokens": Lengths(min=prompt, max=prompt), "output_tokens": Lengths(min=output, max=output)}
    run = Run(
        id="real",
        created=now(),
        recipe=served.recipe,
        workload=Workload(concurrency=clients, requests=len(asked), **lengths),
        hardware=machine,
        status="ok",
        measurement=summarize(records, took_s),
        engine_work=engine_work(before, after),
    )
    trace = served.trace(folder, clients, prompt, output) if folder else None
    served.engine.close()
    return explain(run, machine, model=served.model, trace=trace)


def _record(ends: Ends, index: int, request: GenerationRequest) -> RequestRecord:
    timing = ends.last[request.id].timing
    assert timing is not None
    e2e_ms = (ends.at_s[request.id] - request.arrived_s) * 1e3
    return RequestRecord(
        index=index,
        status="ok",
        sent_ms=0.0,
        ttft_ms=timing["queue_ms"] + timing["prefill_ms"],
        e2e_ms=e2e_ms,
        prompt_tokens=len(request.prompt),
        output_tokens=request.max_tokens,
        server_timing=timing,
    )
