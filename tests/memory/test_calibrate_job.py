"""The calibrate job on a tiny checkpoint, and what a load afterwards makes of it."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_llama import build_tiny_llama

from mcp_core import conflicts, hardware, paths, texts
from mcp_core.calibration_report import CalibrationReport, require_calibrated
from mcp_core.cli import main
from mcp_core.errors import InputError, RecipeError
from mcp_core.jobs import EVENTS, Job
from mcp_core.memory import calibrate_job
from mcp_core.models import catalog, loader
from mcp_core.recipe import Recipe
from mcp_core.studies import Studies

SMOOTH = "torchao-int8-static-smoothquant"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    text = texts.add("short.txt", b"A short text, and its words. " * 20)
    return Recipe().replace(
        {
            "model": {"source": "folder", "id": str(build_tiny_llama(tmp_path / "tiny"))},
            "device": "cpu",
            "dtype": "fp32",
            "threads": 1,
            "quantization.scheme": SMOOTH,
            "quantization.skip": ["*.0.mlp.down_proj"],
            "quantization.calibration": {"text": text.sha256, "samples": 4, "tokens": 32},
        }
    )


def run(folder: Path, recipe: Recipe) -> CalibrationReport:
    folder.mkdir()
    outcome = asyncio.run(calibrate_job.run(Job(folder, {"recipe": recipe.model_dump(mode="json")}, {})))
    assert outcome.state == "done"
    return CalibrationReport.model_validate(json.loads(json.dumps(outcome.result)))


def test_it_tells_every_layer_and_alpha_and_the_next_load_reuses_them(tmp_path: Path, recipe: Recipe) -> None:
    report = run(tmp_path / "job", recipe)
    assert len(report.layers) == 14
    assert [each.name for each in report.layers if not each.packed] == ["model.layers.0.mlp.down_proj"]
    assert all(each.absmax > 0 and (each.outlier_ratio or 0) > 1 and each.tokens == 128 for each in report.layers)
    assert len(report.calibrated.alpha_search) == 7
    assert report.calibrated.text == "short.txt"
    assert not report.calibrated.reused
    events = [json.loads(line)["stage"] for line in (tmp_path / "job" / EVENTS).read_text().splitlines()]
    assert {"load", "calibrate", "search"} <= set(events)

    ready = conflicts.resolve(recipe, hardware.detect())
    loaded = loader.load(catalog.resolve(ready.model), ready, lambda *_: None)
    told = loaded.effective.calibration
    assert told is not None
    assert told.reused
    assert (told.alpha, told.alpha_search) == (report.calibrated.alpha, report.calibrated.alpha_search)
    assert loaded.effective.quantized_modules == 13
    assert run(tmp_path / "again", recipe).calibrated.reused


def test_the_plain_scheme_needs_no_search(tmp_path: Path, recipe: Recipe) -> None:
    report = run(tmp_path / "job", recipe.replace({"quantization.scheme": "torchao-int8-static"}))
    assert report.calibrated.alpha is None
    assert report.calibrated.alpha_search == ()


def test_it_stops_at_the_next_passage_and_keeps_nothing_half(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled() -> None:
        started, loop = asyncio.Event(), asyncio.get_running_loop()
        monkeypatch.setattr(Job, "tell", lambda *_: loop.call_soon_threadsafe(started.set))
        job = Job(tmp_path, {"recipe": recipe.model_dump(mode="json")}, {})
        task = asyncio.ensure_future(calibrate_job.run(job))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())  # waits for the thread, which must have stopped
    assert list(paths.home("calibrations").iterdir()) == []


def test_a_text_that_is_too_short_fails_with_its_passages(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(
        RecipeError, match=r'"short\.txt" has 18 passages of 32 tokens for this model; 100 are asked'
    ):
        run(tmp_path / "job", recipe.replace({"quantization.calibration.samples": 100}))


def test_only_static_schemes_are_calibrated(recipe: Recipe) -> None:
    require_calibrated(recipe)
    with pytest.raises(RecipeError, match="bnb-nf4 is not calibrated") as caught:
        require_calibrated(Recipe().replace({"quantization.scheme": "bnb-nf4"}))
    assert SMOOTH in caught.value.hint
    with pytest.raises(InputError, match="There is no text"):
        require_calibrated(recipe.replace({"quantization.calibration.text": "b" * 64}))


def test_the_command_says_it_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "bundled"]) == 2
    assert "none is not calibrated" in capsys.readouterr().err


def test_the_command_prints_what_was_found(
    tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = run(tmp_path / "job", recipe).model_dump(mode="json")
    monkeypatch.setattr("mcp_core.commands.calibrate.run_job", lambda *_, **__: answer)
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert main(["calibrate", str(tmp_path / "recipe.json")]) == 0
    printed = capsys.readouterr().out
    assert "short.txt: 4 passages of 32 tokens" in printed
    assert f"alpha {answer['calibrated']['alpha']:g}, the best of these" in printed


def test_a_study_is_submitted_with_its_recipe(recipe: Recipe) -> None:
    asked: list[Any] = []
    studies = Studies(lambda *given, **_: asked.append(given) or "id", lambda: (), lambda: None)  # type: ignore[arg-type,return-value]
    assert studies.start_calibration(recipe) == "id"
    assert asked[0][0] == "calibrate"
    assert asked[0][2] == {"recipe": recipe.model_dump(mode="json")}
    with pytest.raises(RecipeError, match="is not calibrated"):
        studies.start_calibration(Recipe())
