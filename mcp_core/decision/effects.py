"""Effects: what stored Runs and Fidelities say about one Recipe, and about all Recipes of its model. Pure.

Only what was measured is here; nothing is estimated. This file does not know where Runs and Fidelities are kept
(``store.py``) or how they are drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mcp_core.conflicts import resolve
from mcp_core.hardware import Hardware
from mcp_core.llama_cpp import with_engine
from mcp_core.recipe import Quantization, Recipe
from mcp_core.results import Fidelity, Run, StoredFidelity

__all__ = ["Effect", "Effects", "baseline_of"]


@dataclass(frozen=True, slots=True)
class Effect:
    """One configuration: its newest good Run and its newest Fidelity, each None where there is none."""

    recipe: Recipe
    run: Run | None = None
    fidelity: Fidelity | None = None

    @property
    def weights_bytes(self) -> int | None:
        """Bytes of the loaded weights."""
        return self.run.memory.weights_bytes if self.run and self.run.memory else None

    @property
    def peak_bytes(self) -> int | None:
        """``Memory.peak_bytes``."""
        return self.run.memory.peak_bytes if self.run and self.run.memory else None

    @property
    def tpot_ms(self) -> float | None:
        """Median time per output token, ms."""
        return self.run.measurement.tpot_ms.p50 if self.run and self.run.measurement else None

    @property
    def output_tok_s(self) -> float | None:
        """Output tokens per second over the whole Workload."""
        return self.run.measurement.output_tok_s if self.run and self.run.measurement else None

    @property
    def kl(self) -> float | None:
        """Mean KL against the reference, nats; 0 where a test shows that nothing is lost."""
        if self.fidelity is None or self.fidelity.status == "not-measurable":
            return None
        if self.fidelity.status == "lossless-by-test":
            return 0.0
        return self.fidelity.kl.mean if self.fidelity.kl else None


def baseline_of(recipe: Recipe) -> Recipe:
    """The same Recipe with its weights left in their dtype, which for llama.cpp's takes transformers."""
    if recipe.engine == "llama.cpp":
        return with_engine(recipe, "transformers").replace({"device": recipe.device})
    return recipe.model_copy(update={"quantization": Quantization()})


class Effects:
    """What was measured of one model on one kind of device, under one Workload."""

    def __init__(
        self, recipe: Recipe, hardware: Hardware, runs: Sequence[Run], fidelities: Sequence[StoredFidelity]
    ) -> None:
        """``recipe`` says which model and device; ``runs`` and ``fidelities`` are newest first.

        Figures of different Workloads or devices do not belong in one picture: Runs of the Workload under which
        most configurations were measured are taken, the newest such Workload where several are equal; Fidelities
        in the same way of one text.
        """
        self._hardware = hardware
        judged = _of_one_text([each for each in fidelities if _same_model(each.recipe, recipe)])
        self._fidelities = {_numerics(each.recipe, hardware): each.fidelity for each in reversed(judged)}
        fitting = [run for run in runs if _is_good(run) and _same_model(run.recipe, recipe)]
        device = _device_name(recipe, hardware)
        here = [run for run in fitting if _device_name(run.recipe, run.hardware) == device]
        keyed = [(_load_key(run.recipe, run.hardware), run) for run in here]
        self.workload_name, of_workload = _of_one_workload(keyed)
        self._runs = dict(reversed(of_workload))

    def of(self, recipe: Recipe) -> Effect:
        """What was measured of this Recipe; its own Run's Fidelity counts before one judged apart."""
        run = self._runs.get(_load_key(recipe, self._hardware))
        judged = self._fidelities.get(_numerics(recipe, self._hardware))
        return Effect(recipe, run, run.fidelity if run and run.fidelity else judged)

    def all(self) -> tuple[Effect, ...]:
        """Every configuration of this model that has a Run, newest first."""
        newest_first = sorted(self._runs.values(), key=lambda run: run.created, reverse=True)
        return tuple(self.of(run.recipe) for run in newest_first)

    def complete(self) -> tuple[Effect, ...]:
        """Those whose memory, speed and KL are all measured."""
        return tuple(each for each in self.all() if None not in (each.peak_bytes, each.output_tok_s, each.kl))


def _is_good(run: Run) -> bool:
    return run.status == "ok" and run.measurement is not None and run.memory is not None


def _of_one_workload(keyed: Sequence[tuple[str, Run]]) -> tuple[str | None, list[tuple[str, Run]]]:
    counts = Counter(workload for workload, _ in {(run.workload.fingerprint, key) for key, run in keyed})
    most = max(counts.values(), default=0)
    chosen = next((run.workload for _, run in keyed if counts[run.workload.fingerprint] == most), None)
    if chosen is None:
        return None, []
    return chosen.name, [each for each in keyed if each[1].workload.fingerprint == chosen.fingerprint]


def _of_one_text(judged: Sequence[StoredFidelity]) -> list[StoredFidelity]:
    """Those without a text (nothing had to be scored) belong to any."""
    counts = Counter(each.fidelity.text_sha256 for each in judged if each.fidelity.text_sha256)
    most = max(counts.values(), default=0)
    text = next(
        (each.fidelity.text_sha256 for each in judged if counts[each.fidelity.text_sha256 or ""] == most), None
    )
    return [each for each in judged if each.fidelity.text_sha256 in (text, None)]


def _same_model(one: Recipe, other: Recipe) -> bool:
    """The same reference; contents are compared where both are known, as a folder's may have changed."""
    if one.model.sha256 and other.model.sha256 and one.model.sha256 != other.model.sha256:
        return False
    return _nameless(one).model == _nameless(other).model and one.engine == other.engine


def _nameless(recipe: Recipe) -> Recipe:
    """Without the content hash, which is known only once the model is resolved."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"sha256": None})})


def _load_key(recipe: Recipe, hardware: Hardware) -> str:
    return _nameless(resolve(recipe, hardware)).load_key


def _numerics(recipe: Recipe, hardware: Hardware) -> str:
    return _nameless(resolve(recipe, hardware)).numerics_key


def _device_name(recipe: Recipe, hardware: Hardware) -> str | None:
    device = hardware.device(recipe.device)
    return device.name if device else None
