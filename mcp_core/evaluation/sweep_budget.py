"""Device time of a sweep before it starts: by earlier Runs where there are any, else estimates.

This file does not know which cells can run (``sweep_cells.py``) or how they are measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import mean, median

from mcp_core.evaluation.attainment import least_requests
from mcp_core.evaluation.sweep_ceilings import CEILINGS_S
from mcp_core.evaluation.sweep_cells import CheckedCell
from mcp_core.results import Run
from mcp_core.sweep_plan import SweepPlan
from mcp_core.workload import Workload

__all__ = ["Budget", "LoadTime", "budget_of", "drain_s", "load_time", "runnable"]

# Without any earlier Run: imports and warm-up, then weights read or drawn and packed. Measured on two cores with
# 135M and 0.5B parameters; a GPU host reads faster, so that this is long rather than short there.
_START_S = 9.0
_LOAD_BYTES_S = 0.15e9
# Random weights are drawn and packed on a GPU. H100, 7B and 13B: 13 to 20 s in all, but for LLM.int8's 28 and 38.
_DRAWN_BYTES_S = 0.4e9
# What a load stage takes at least besides its seconds: warm-up requests, those that still run when time is over.
_AROUND_S = 3.0
_AROUND_SHARE = 0.2
# Not known before: how long a queue is that no Run has had yet, and what else the machine will do.
_ON_TOP = "A long queue when time is over, and repeats on a noisy machine, come on top."


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Seconds from start to ready. ``measured``: here, of this configuration or of its model and scheme."""

    seconds: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """Device time in seconds by stage. ``loads`` workers are started, ``known_loads`` of them of a known time.

    ``judged`` answers on fidelity are sought at most; ``ceilings_s`` is for devices whose ceilings are not known.
    ``too_few`` says which configurations the plan's stages are too short for, as a sentence; empty where none is.
    """

    cells: int
    refused: int
    loads: int
    known_loads: int
    load_s: float
    probe_s: float
    judged: int
    fidelity_s: float
    measure_s: float
    confirm_s: float
    ceilings_s: float = 0.0
    too_few: str = ""

    @property
    def seconds(self) -> float:
        """All stages."""
        return self.ceilings_s + self.load_s + self.probe_s + self.fidelity_s + self.measure_s + self.confirm_s

    def in_words(self) -> str:
        """ "26 configurations (10 refused): about 31 min of device time: 9 min loading (...), ..."."""
        parts = {
            "measuring what the device reaches at most": self.ceilings_s,
            "loading": self.load_s,
            "probes": self.probe_s,
            f"judging at most {self.judged} by fidelity": self.fidelity_s,
            "measuring": self.measure_s,
            "confirming": self.confirm_s,
        }
        split = ", ".join(f"{_time(seconds)} {what}" for what, seconds in parts.items() if seconds)
        refused = f", {self.refused} more refused" if self.refused else ""
        what = f"{self.cells} configuration{'' if self.cells == 1 else 's'}{refused}"
        if not self.cells:
            return f"{what}: nothing to measure."
        sentences = (f"({split}).", self._certainty(), _ON_TOP, self.too_few)
        return f"{what}: about {_time(self.seconds)} of device time {' '.join(filter(None, sentences))}"

    def _certainty(self) -> str:
        if self.known_loads == self.loads:
            return "Load times are those of earlier Runs here."
        if not self.known_loads:
            return "Load times are estimated: there is no earlier Run of these here."
        return f"Load times: {self.known_loads} of {self.loads} from earlier Runs here, the others estimated."


def runnable(checked: Iterable[CheckedCell]) -> tuple[CheckedCell, ...]:
    """Those that are not refused."""
    return tuple(each for each in checked if each.refused is None)


def load_time(each: CheckedCell, runs: Sequence[Run]) -> LoadTime:
    """The median of earlier Runs of this load, else of this model, scheme and engine, else by its weights."""
    recipe = each.cell.recipe
    timed = [run for run in runs if run.load_s is not None]
    same = [run for run in timed if _same_model(run, each) and _loads_alike(run, each)]
    alike = same or [
        run
        for run in timed
        if _same_model(run, each)
        and run.recipe.engine == recipe.engine
        and run.recipe.quantization.scheme == recipe.quantization.scheme
    ]
    if alike:
        return LoadTime(median(run.load_s for run in alike if run.load_s is not None), measured=True)
    return LoadTime(_START_S + _weights_s(each), measured=False)


def _weights_s(each: CheckedCell) -> float:
    if each.footprint is None:
        return 0.0
    recipe = each.cell.recipe
    drawn = recipe.engine == "transformers" and recipe.model.source == "shape" and each.footprint.device != "cpu"
    return each.footprint.weights_bytes / (_DRAWN_BYTES_S if drawn else _LOAD_BYTES_S)


def budget_of(
    plan: SweepPlan,
    checked: Sequence[CheckedCell],
    runs: Sequence[Run],
    fidelity_s: Sequence[float] = (),
    ceilings: int = 0,
) -> Budget:
    """Device time of the whole plan; ``runs`` are earlier ones of this machine, ``fidelity_s`` seconds of each
    answer on fidelity that is not known yet (``fidelity_time.py``), ``ceilings`` devices that lack theirs."""
    cells = runnable(checked)
    firsts = [next(group) for _, group in groupby(cells, key=lambda each: each.cell.load_key)]
    times = [load_time(each, runs) for each in firsts]
    typical_s = mean(time.seconds for time in times) if times else 0.0
    measured = min(len(cells), plan.keep or len(cells))
    drains = [drain_s(each, plan.load(), runs) for each in cells]
    drain = mean(each or 0.0 for each in drains) if drains else 0.0
    # Over a limit the next is judged; without one only those that are kept.
    judged = sorted(fidelity_s, reverse=True)[: None if plan.fidelity_limits else measured]
    confirmed = min(measured, plan.confirm) * plan.starts
    again = min(measured, len(firsts)) if plan.probe_s else 0
    return Budget(
        cells=len(cells),
        refused=len(checked) - len(cells),
        loads=len(firsts),
        known_loads=sum(time.measured for time in times),
        load_s=sum(time.seconds for time in times) + typical_s * (again + confirmed),
        probe_s=sum(_with_ends(plan.probe_s, each or 0.0) for each in drains) if plan.probe_s else 0.0,
        judged=len(judged),
        fidelity_s=sum(judged),
        measure_s=measured * _with_ends(plan.capacity_s, drain),
        confirm_s=confirmed * _with_ends(plan.confirm_s, drain),
        ceilings_s=ceilings * CEILINGS_S,
        too_few=_too_few(plan),
    )


def _too_few(plan: SweepPlan) -> str:
    """Whom the stage that decides leaves without a percentile that the Goal limits: better known before."""
    least = least_requests(plan.goal.slo) if plan.goal else 1
    name, seconds = ("confirm_s", plan.confirm_s) if plan.confirm else ("capacity_s", plan.capacity_s)
    if least == 1 or (plan.seeks_capacity and not plan.confirm):  # each point of a search takes as many as it needs
        return ""
    return (
        f"A percentile that the Goal limits takes {least:,} requests a Run: what answers fewer than "
        f"{least / seconds:.3g} a second for {seconds:g} s ends as not measured; a longer {name} helps."
    )


def drain_s(each: CheckedCell, load: Workload, runs: Sequence[Run]) -> float | None:
    """From when time is over to the last answer: the longest request of earlier Runs of this configuration under
    this load, the median of them; None where there is none."""
    batching = each.cell.recipe.batching
    longest = [
        run.measurement.e2e_ms.max / 1e3
        for run in runs
        if run.measurement is not None
        and run.measurement.e2e_ms.max is not None
        and _same_model(run, each)
        and _loads_alike(run, each)
        and (run.recipe.batching.mode, run.recipe.batching.max_requests) == (batching.mode, batching.max_requests)
        and _asks_alike(run.workload, load)
    ]
    return median(longest) if longest else None


def _asks_alike(one: Workload, other: Workload) -> bool:
    lengths = one.prompt_tokens == other.prompt_tokens and one.output_tokens == other.output_tokens
    return lengths and (one.load_kind, one.load) == (other.load_kind, other.load)


def _with_ends(seconds: float, drain: float) -> float:
    """A share is what is added where a Run knows no better, or less."""
    return seconds + max(seconds * _AROUND_SHARE, drain) + _AROUND_S


def _same_model(run: Run, each: CheckedCell) -> bool:
    ours, theirs = each.cell.recipe.model, run.recipe.model
    return (ours.source, ours.id, ours.shape) == (theirs.source, theirs.id, theirs.shape)


def _loads_alike(run: Run, each: CheckedCell) -> bool:
    """The Run's Recipe is a resolved one: hash, device and threads are filled in."""
    ours = each.cell.recipe
    given = {"model": ours.model, "device": ours.device, "threads": ours.threads}
    return run.recipe.model_copy(update=given).load_key == ours.load_key


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
