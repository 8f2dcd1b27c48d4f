"""The calibrate job: the dense model loaded, its ranges found or taken from an earlier time, alpha searched.

What it finds is kept, so that loading the Recipe afterwards only packs. This file does not know how
(``calibration.py``, ``quantization/torchao_static.py``).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import torch

from mcp_core import conflicts, hardware
from mcp_core.calibration_report import CalibrationReport, LayerRange, require_calibrated
from mcp_core.errors import Cancelled, RecipeError
from mcp_core.jobs import Job, Outcome
from mcp_core.memory import quantization
from mcp_core.memory.calibration import FoundRanges, calibrate
from mcp_core.memory.quantization import Conversion
from mcp_core.memory.quantization.torchao_static import choose_alpha
from mcp_core.models import catalog, loader
from mcp_core.models.load_errors import foreign_errors
from mcp_core.models.loaded import LoadedModel
from mcp_core.recipe import Recipe
from mcp_core.results import Calibrated

__all__ = ["run"]

Report = Callable[[str, float | None, str], None]


async def run(job: Job) -> Outcome:
    """Request: recipe. Secrets: hub_token. The result is a CalibrationReport. Stops between two passages."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(_answer, job, stop)
    except asyncio.CancelledError:
        stop.set()
        raise


def _answer(job: Job, stop: threading.Event) -> Outcome:
    recipe = conflicts.resolve(Recipe.from_dict(job.request["recipe"]), hardware.detect())
    require_calibrated(recipe)
    torch.set_num_threads(recipe.threads or 1)

    def report(stage: str, fraction: float | None, message: str) -> None:
        if stop.is_set():
            raise Cancelled("Calibrating was stopped.", "What was kept before is still there.")
        job.tell(stage, fraction, message)

    token = job.secrets.get("hub_token")
    resolved = catalog.resolve(recipe.model, hub_token=token)
    if resolved.quantized is not None:
        raise RecipeError(f"{resolved.title} is quantized already.", "Choose its original checkpoint.")
    loaded = loader.load(resolved, recipe.replace({"quantization": {}}), report, token)
    with foreign_errors(loaded.title, f"calibrating {loaded.title}"):
        found = _calibrate(loaded, recipe, report)
    return Outcome("done", result=found.model_dump(mode="json"))


def _calibrate(loaded: LoadedModel, recipe: Recipe, report: Report) -> CalibrationReport:
    device, started_s = torch.device(recipe.device), time.monotonic()
    kept_dense = quantization.layers_to_keep_dense(loaded.model, recipe.quantization, device)
    conversion = Conversion(
        recipe=recipe.model_copy(update={"model": loaded.resolved.ref}),
        dtype=loaded.model.get_input_embeddings().weight.dtype,
        device=device,
        keep_dense=tuple(kept_dense),
        codec=loaded.codec,
        report=lambda fraction, message: report("calibrate", fraction, message),
    )
    found = calibrate(loaded.model, conversion, lambda part, text: report("calibrate", part, text))
    calibrated = _with_alpha(loaded, conversion, found, started_s, report)
    layers = tuple(
        LayerRange(
            name=name,
            absmax=each.largest,
            outlier_ratio=each.outlier_ratio,
            tokens=each.tokens,
            packed=name not in kept_dense,
        )
        for name, each in found.ranges.items()
    )
    return CalibrationReport(scheme=recipe.quantization.scheme, calibrated=calibrated, layers=layers)


def _with_alpha(
    loaded: LoadedModel, conversion: Conversion, found: FoundRanges, started_s: float, report: Report
) -> Calibrated:
    if "alpha" not in conflicts.options_read_by(conversion.options.scheme):
        return found.told(None, (), time.monotonic() - started_s)
    alpha, tried = choose_alpha(loaded.model, conversion, found, lambda part, text: report("search", part, text))
    return found.told(alpha, tried, time.monotonic() - started_s)
