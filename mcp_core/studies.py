"""Studies: what is found out about a Recipe beside serving it, each a job in a process of its own.

Pages reach it as ``workbench.studies``. This file does not know how a study is done (the job's module in
``jobs.VERBS`` does) or when it may run (``job_registry.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mcp_core import conflicts, hardware
from mcp_core.calibration_report import require_calibrated
from mcp_core.checkpoint_formats import CheckpointFormat, require_new_folder, require_savable
from mcp_core.errors import InputError
from mcp_core.evaluation import experiment_results
from mcp_core.evaluation.endpoint_recipe import require_url
from mcp_core.evaluation.experiment_values import ExperimentResult
from mcp_core.evaluation.experiments import experiment
from mcp_core.evaluation.sensitivity_values import Grouping, require_separable
from mcp_core.recipe import ModelRef, Recipe
from mcp_core.results import StoredFidelity
from mcp_core.texts import StoredText, TextSet, add, list_texts
from mcp_core.token_map import TokenMap
from mcp_core.views import JobView

if TYPE_CHECKING:
    from mcp_core.decision.shipment import Shipment
    from mcp_core.decision.store import Store
    from mcp_core.evaluation.task_check import TaskItem

__all__ = ["Studies", "Submit"]


class Submit(Protocol):
    """Queues a job that measures on the Recipe's device; ``workbench.Workbench`` gives one.

    With ``alone`` False it waits for no device: it judges what is said, not how fast, beside whoever is there.
    """

    def __call__(
        self,
        verb: str,
        title: str,
        request: dict[str, Any],
        recipe: Recipe,
        hub_token: str | None = None,
        /,
        *,
        alone: bool = True,
    ) -> str:
        """The job's id. Raises RecipeError for what cannot run here, and Busy."""


class Studies:
    """Starts studies and finds what they answered. Every method may be called from any thread."""

    def __init__(self, submit: Submit, jobs: Callable[[], tuple[JobView, ...]], store: Callable[[], Store]) -> None:
        self._submit = submit
        self._jobs = jobs
        self._store = store

    def latest(self, verb: str, recipe: Recipe | None = None) -> JobView | None:
        """The newest job of that verb, of that Recipe where one is given; None when there is none."""
        return next((job for job in self.all(verb) if recipe is None or _of(job) == recipe.fingerprint), None)

    def all(self, verb: str) -> tuple[JobView, ...]:
        """Every job of that verb, newest first."""
        return tuple(job for job in self._jobs() if job.verb == verb)

    def start_fidelity(
        self,
        recipe: Recipe,
        text_sha256: str | None = None,
        hub_token: str | None = None,
        *,
        original: ModelRef | None = None,
        fresh: bool = False,
    ) -> str:
        """Judge the Recipe against its checkpoint's native dtype, or against ``original``; the job's id.

        ``text_sha256`` is a text of mcp_core/texts.py, None the built-in set; ``original`` is the model that a
        checkpoint was made of which came quantized; ``fresh`` measures again what is known. The answer is
        {fidelity, cached}. Raises RecipeError, Busy.
        """
        request = _about(recipe) | {"text_sha256": text_sha256, "fresh": fresh}
        if original is not None:
            request["original"] = original.model_dump(mode="json")
        title = f"fidelity of {recipe.model.id}, {recipe.quantization.scheme}"
        return self._submit("fidelity", title, request, recipe, hub_token)

    def start_endpoint_fidelity(
        self, recipe: Recipe, url: str, reference_url: str | None = None, text_sha256: str | None = None
    ) -> str:
        """Judge the server at ``url``, which runs the Recipe's model, by its prompt log-probabilities.

        The reference is the server at ``reference_url``, or a worker with the checkpoint's native dtype. The answer
        is {fidelity}, and it is stored. Raises RecipeError, Busy, InputError for what is no URL.
        """
        for each in filter(None, (url, reference_url)):
            require_url(each)
        request = _about(recipe) | {"url": url, "reference_url": reference_url, "text_sha256": text_sha256}
        # The server's scheme and engine need not be possible here, and it may be on this very device.
        model = Recipe(model=recipe.model, device=recipe.device, threads=recipe.threads)
        return self._submit("endpoint-fidelity", f"fidelity of {url}", request, model, None, alone=False)

    def start_length_drift(
        self, recipe: Recipe, text_sha256: str | None = None, max_tokens: int = 256, hub_token: str | None = None
    ) -> str:
        """Compare the lengths of greedy replies with the native dtype's; the answer is a LengthDrift.

        ``text_sha256`` is one of the user's texts with prompts in it, None the built-in sixteen. Raises as
        ``start_fidelity``.
        """
        request = _about(recipe) | {"text_sha256": text_sha256, "max_tokens": max_tokens}
        return self._submit("length-drift", f"reply lengths of {_name(recipe)}", request, recipe, hub_token)

    def start_task_check(
        self,
        recipe: Recipe,
        name: str | None = None,
        items: Sequence[TaskItem] | None = None,
        hub_token: str | None = None,
    ) -> str:
        """Compare the answers to multiple-choice items with the native dtype's; the answer is a TaskCheck.

        None is the built-in sixty items. Raises as ``start_fidelity``.
        """
        given = None if items is None else [item.model_dump() for item in items]
        request = _about(recipe) | {"name": name, "items": given}
        return self._submit("task-check", f"task check of {_name(recipe)}", request, recipe, hub_token)

    def start_calibration(self, recipe: Recipe, hub_token: str | None = None) -> str:
        """Find activation ranges for a static scheme ahead of loading, and SmoothQuant's alpha; the job's id.

        Loading the Recipe later finds them kept. The answer is a CalibrationReport. Raises RecipeError, also for a
        scheme that is not calibrated, InputError when the text is not kept here, and Busy.
        """
        require_calibrated(recipe)
        return self._submit("calibrate", f"calibration of {_name(recipe)}", _about(recipe), recipe, hub_token)

    def start_quantize(
        self, recipe: Recipe, out: Path, fmt: CheckpointFormat = "library", hub_token: str | None = None
    ) -> str:
        """Write the quantized model to ``out`` and return the job's id; its answer is a SavedCheckpoint.

        Raises RecipeError where the scheme cannot be written in that format, InputError for a folder in use, Busy.
        """
        require_savable(recipe, conflicts.resolve(recipe, hardware.detect()).device.partition(":")[0], fmt)
        require_new_folder(out)
        request = _about(recipe) | {"out": str(out.absolute()), "format": fmt}
        return self._submit("quantize", f"{_name(recipe)} written to {out.name}", request, recipe, hub_token)

    def fidelity(self, key: str) -> StoredFidelity | None:
        """A judged Recipe by ``Fidelity.key``; None when there is none. This and the next two raise StoreError."""
        return self._store().fidelity(key)

    def fidelities(self, limit: int = 100) -> tuple[StoredFidelity, ...]:
        """Judged Recipes, newest first."""
        return self._store().fidelities(limit)

    def token_map(self, key: str) -> TokenMap | None:
        """The scored texts token by token, by ``Fidelity.key``."""
        return self._store().token_map(key)

    def texts(self) -> tuple[StoredText, ...]:
        """The user's texts for calibration and fidelity, newest first."""
        return list_texts()

    def add_text(self, name: str, content: bytes) -> TextSet:
        """Keep a file's text; ``name`` says by its suffix how it is read. Raises InputError for what is no text."""
        return add(name, content)

    def start_sensitivity(
        self, recipe: Recipe, by: Grouping, tokens: int = 512, hub_token: str | None = None
    ) -> str:
        """Quantize one group of layers at a time and judge each; return the job's id. Its answer is a Sensitivity.

        Raises RecipeError, also for a scheme that cannot be tried on a group, and Busy.
        """
        require_separable(recipe)
        whole = _whole(recipe)
        request = {"recipe": whole.model_dump(mode="json"), "by": by, "tokens": tokens}
        title = f"Sensitivity to {recipe.quantization.scheme} by {by}"
        return self._submit("sensitivity", title, request, whole, hub_token)

    def sensitivity(self, recipe: Recipe) -> JobView | None:
        """The newest sensitivity job of this model and scheme, whatever layers the Recipe keeps dense."""
        return self.latest("sensitivity", _whole(recipe))

    def start_experiment(self, name: str, recipe: Recipe, hub_token: str | None = None) -> str:
        """Try one piece of the article's advice on the Recipe's model, device and threads; the job's id.

        The answer is an ExperimentResult, which is kept. Raises InputError for an unknown name, RecipeError where
        this machine cannot, and Busy.
        """
        what = experiment(name)
        _, changed = what.recipes(recipe)
        request = _about(recipe) | {"name": name}
        return self._submit("experiment", what.job_title(recipe), request, changed, hub_token)

    def start_ceilings(self, recipe: Recipe) -> str:
        """Measure what the Recipe's device reaches at most, a CPU with its threads; the job's id.

        The answer is a Ceilings, which is kept and in ``Hardware`` from then on. Raises RecipeError, Busy.
        """
        resolved = conflicts.resolve(recipe, hardware.detect())
        request = {"device": resolved.device, "threads": resolved.threads}
        device = Recipe(device=resolved.device, threads=resolved.threads)
        return self._submit("ceilings", f"ceilings of {resolved.device}", request, device)

    def start_confirmation(
        self,
        shipment: Shipment,
        target: str,
        engine: str | None = None,
        url: str | None = None,
        hub_token: str | None = None,
    ) -> str:
        """Start what is exported there, or ask the server at ``url``, and measure it beside what was predicted.

        The answer is {confirmation, decision, run}; where it holds, the evidence of stored Runs is raised. Raises
        InputError where nothing can be started, RecipeError where it cannot run here, Busy.
        """
        from mcp_core.decision.export import export, recipe_served

        made = export(shipment, target, engine)
        if url is not None:
            require_url(url)
        elif made.command is None:
            raise InputError(f"{made.title} is not started from here.", "Start it, and give its URL.")
        request = {
            "target": target,
            "engine": engine,
            "url": url,
            "run": shipment.run.model_dump(mode="json") if shipment.run else None,
            "decision": shipment.decision.model_dump(mode="json") if shipment.decision else None,
        }
        # A server elsewhere holds no device here; one that is started runs the Recipe on its own engine.
        recipe = Recipe() if url else recipe_served(shipment.recipe, target)
        title = f"confirm {made.title}, {shipment.recipe.model.id}"
        return self._submit("confirm", title, request, recipe, hub_token, alone=url is None)

    def experiments(self) -> dict[str, ExperimentResult]:
        """The latest result of each experiment on this machine's devices, by its name."""
        return experiment_results.latest(hardware.detect())


def _whole(recipe: Recipe) -> Recipe:
    """What a sensitivity study is about: every layer quantized, and nothing that only serving reads."""
    return Recipe(
        model=recipe.model,
        device=recipe.device,
        threads=recipe.threads,
        dtype=recipe.dtype,
        quantization=recipe.quantization.model_copy(update={"skip": ()}),
        attention=recipe.attention,
    )


def _about(recipe: Recipe) -> dict[str, Any]:
    return {"recipe": recipe.model_dump(mode="json")}


def _name(recipe: Recipe) -> str:
    return f"{recipe.model.id}, {recipe.quantization.scheme}"


def _of(job: JobView) -> str | None:
    """Fingerprint of the Recipe that the job was asked about."""
    fingerprint = job.detail.get("recipe_fingerprint")
    return str(fingerprint) if fingerprint else None
