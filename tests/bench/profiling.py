"""What the profiler costs: the sections that mark a trace while it is off, and the profiler while it is on.

The engine alone, in this process, on the bundled model in fp32 and one thread: no HTTP. Off: the same engine with
its sections taken out, in turns, a request each. On a GPU (``--device cuda:0 --dtype bf16``) steps are ten times
shorter, so that there the same nanoseconds weigh more. Prints one row a claim and exits 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mcp_core import conflicts, hardware, sections  # noqa: E402
from mcp_core.generation import GenerationRequest, Sampling, TokenEvent  # noqa: E402
from mcp_core.models import catalog  # noqa: E402
from mcp_core.presets import bundled  # noqa: E402
from mcp_core.profile_plan import ProfilePlan  # noqa: E402
from tests.bench.report import Report  # noqa: E402

TOKENS = 96
ROUNDS = 12
# The bundled model's sizes with random weights: its file need not be brought to a GPU host.
SIZES = {"layers": 30, "hidden": 576, "intermediate": 1536, "heads": 9, "kv_heads": 3, "vocab": 49152}
RANDOM = {"source": "shape", "id": "custom", "shape": SIZES}
RECORDED = 5
SECTION_CALLS = 200_000
# Entered at each decode step by the engine's thread: queue, delivery, sampling twice (chosen, read).
SECTIONS_A_STEP = 4


class Listener:
    """The engine's sink: when each token of the newest request came."""

    def __init__(self) -> None:
        self.at_s: list[float] = []
        self.ended = threading.Event()

    def __call__(self, events: list[TokenEvent], /) -> None:
        for event in events:
            self.at_s.append(event.at_s)
            if event.finish is not None:
                self.ended.set()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--mode", default="off")
    options = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as home:
        os.environ.setdefault("MCP_HOME", home)
        engine, listener = loaded(options)
        step_s = off(engine, listener, report)
        one_section(step_s, report)
        on(engine, listener, report, Path(home))
        engine.close()
    return report.end()


def loaded(options: argparse.Namespace) -> tuple[Any, Listener]:
    """An engine that serves."""
    import torch

    from mcp_core.inference.engine import Engine
    from mcp_core.models import loader

    torch.set_num_threads(1)
    recipe = bundled().replace(
        {"device": options.device, "dtype": options.dtype, "threads": 1, "batching.mode": options.mode}
        | ({} if options.device == "cpu" else {"model": RANDOM})
    )
    recipe = conflicts.resolve(recipe, hardware.detect())
    resolved = catalog.resolve(recipe.model)
    model = loader.load(resolved, recipe, lambda _stage, _part, _text: None, None)
    listener = Listener()
    engine = Engine(model, recipe, listener)
    engine.warm_up()
    engine.start()
    return engine, listener


def off(engine: Any, listener: Listener, report: Report) -> float:
    """Pairs of requests, with the sections and without, each first in every other pair; a decode step, s."""
    rate(engine, listener)  # warm
    pairs = []
    for number in range(ROUNDS):
        both = {}
        for present in (True, False) if number % 2 else (False, True):
            with contextlib.nullcontext() if present else without_sections():
                both[present] = rate(engine, listener)
        pairs.append((both[True], both[False]))
    ratio = statistics.median(with_them / without for with_them, without in pairs)
    speed = statistics.median(with_them for with_them, _ in pairs)
    figure = f"{ratio:.4f} ({speed:.1f} tok/s, {ROUNDS} pairs)"
    report.row("decode tokens/s, profiler off, sections present / absent", ">= 0.99", figure, holds=ratio >= 0.99)
    return 1 / speed


def one_section(step_s: float, report: Report) -> None:
    """What entering and leaving one costs, which is the same in any step."""
    began_s = time.perf_counter()
    for _ in range(SECTION_CALLS):
        with sections.profile_section("sampling"):
            pass
    each_s = (time.perf_counter() - began_s) / SECTION_CALLS
    share = SECTIONS_A_STEP * each_s / step_s
    figure = f"{each_s * 1e9:.0f} ns each, {share:.3%} of a step"
    report.row(
        f"{SECTIONS_A_STEP} sections of a decode step, profiler off", "<= 0.1% of it", figure, holds=share <= 1e-3
    )


def on(engine: Any, listener: Listener, report: Report, folder: Path) -> None:
    """Tokens/s while it records, with each set of details; stated, no claim."""
    for words, details in (
        ("operators", {"shapes": False}),
        ("and shapes", {}),
        ("and memory", {"memory": True}),
        ("and Python stacks", {"stacks": True}),
    ):
        pairs = [
            (rate(engine, listener, 26), rate_recorded(engine, listener, folder, details)) for _ in range(RECORDED)
        ]
        ratio = statistics.median(recorded / plain for plain, recorded in pairs)
        figure = f"{ratio:.2f} (off {statistics.median(plain for plain, _ in pairs):.1f} tok/s)"
        report.row(f"decode tokens/s while recording {words} / off", "stated", figure, holds=True)


def rate(engine: Any, listener: Listener, tokens: int = TOKENS) -> float:
    """Tokens/s of one request's decode steps, by the engine's clock: of the fast ones, which nobody disturbed."""
    listener.at_s, listener.ended = [], threading.Event()
    prompt = tuple(range(100, 164))
    engine.submit(GenerationRequest("bench", prompt, tokens, Sampling(temperature=0), tokens, ignore_eos=True))
    assert listener.ended.wait(300)
    gaps = sorted(after - before for before, after in zip(listener.at_s, listener.at_s[1:], strict=False))
    return 1 / gaps[len(gaps) // 10]


def rate_recorded(engine: Any, listener: Listener, folder: Path, details: dict[str, Any]) -> float:
    """The same while steps are recorded."""
    plan = ProfilePlan(steps=24, warmup=2, **details)
    recording = threading.Thread(target=engine.profile, args=(plan, folder, 300.0))
    recording.start()
    while engine._recording is None:
        time.sleep(0.001)
    speed = rate(engine, listener, tokens=26)
    recording.join()
    return speed


@contextlib.contextmanager
def without_sections() -> Iterator[None]:
    """The engine as it would be without them: their calls, not only their work, are gone."""
    from mcp_core.inference.choosing import Chooser, Chosen
    from mcp_core.inference.engine import Engine

    replaced = (
        (Chooser, "launch", Chooser._launch),
        (Chosen, "read", Chosen._read),
        (Engine, "_round", _bare_round),
        (Engine, "_step", _bare_step),
    )
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in replaced]
    for owner, name, bare in replaced:
        setattr(owner, name, bare)
    try:
        yield
    finally:
        for owner, name, method in before:
            setattr(owner, name, method)


def _bare_round(engine: Any) -> Any:
    engine._feed()
    return engine._step()


def _bare_step(engine: Any) -> Any:
    """Engine._step but for its section."""
    engine._drop_cancelled()
    began_s = time.perf_counter()
    outcome = engine._mode.step()
    with engine._changed:
        events = engine._ledger.take(outcome, began_s, time.perf_counter())
        engine._settle(events)
    if events:
        engine._sink(events)
    return outcome


if __name__ == "__main__":
    sys.exit(main())
