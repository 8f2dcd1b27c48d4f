from __future__ import annotations

import pytest

from mcp_core.models.catalog import resolve
from mcp_core.models.correction import NONE, Correction, Error, correction_of, error_of, errors_of
from mcp_core.models.footprint import estimate
from mcp_core.recipe import Recipe
from mcp_core.results import Effective, Memory, Prediction, Run, new_run_id, now
from mcp_core.workload import Workload
from tests.models.test_footprint import machine, recipe

MB = 10**6


def said(peak_mb: int) -> Prediction:
    return Prediction(weights_bytes=1, peak_bytes=peak_mb * MB, load_peak_bytes=1, context_tokens=9)


def run(predicted: int | None = 100, measured: int | None = 130, **changes: object) -> Run:
    """A Run of a shape on a CPU; sizes in MB."""
    values: dict[str, object] = {
        "id": new_run_id(),
        "created": now(),
        "recipe": recipe(),
        "workload": Workload(),
        "hardware": machine(),
        "status": "ok",
        "memory": Memory(peak_bytes=measured * MB) if measured else None,
        "predicted": said(predicted) if predicted else None,
    }
    return Run.model_validate(values | changes)


def test_an_error_says_how_much_and_which_way() -> None:
    error = error_of(run(predicted=90, measured=120))
    assert error is not None
    assert error.off_bytes == 30 * MB
    assert error.share == pytest.approx(-0.25)


def test_only_runs_that_are_alike_count() -> None:
    alike = run()
    others = [
        run(predicted=None),
        run(measured=None),
        run(status="failed"),
        run(recipe=recipe(quantization__scheme="bnb-nf4")),
        run(recipe=Recipe(device="cuda:0")),
        run(hardware=machine().model_copy(update={"host": "another"})),
    ]
    assert [error.run_id for error in errors_of([*others, alike], recipe(), "h")] == [alike.id]
    nf4 = errors_of([*others, alike], recipe(quantization__scheme="bnb-int8"), "h")
    assert [error.run_id for error in nf4] == [others[3].id]  # one library packs both


def off(*errors: int, measured: int = 1000) -> tuple[Error, ...]:
    """Errors that were that far off, MB."""
    return tuple(Error(str(at), (measured - each) * MB, measured * MB) for at, each in enumerate(errors))


def test_the_median_corrects_and_one_odd_run_decides_nothing() -> None:
    assert correction_of(off(10, 12, 90)) == Correction(12 * MB, 3)
    assert correction_of(off(-10, -12, -90)) == Correction(-12 * MB, 3)
    assert correction_of(off(10, 12)) == NONE
    assert correction_of(()) == NONE


def test_the_newest_twenty_count() -> None:
    assert correction_of(off(*[5] * 20, *[500] * 40)) == Correction(5 * MB, 20)


def test_a_correction_is_bounded_by_a_quarter_of_the_peak() -> None:
    assert correction_of(off(900, 900, 900)) == Correction(250 * MB, 3)
    assert correction_of(off(-900, -900, -900)) == Correction(-250 * MB, 3)


def test_planted_error_is_learned_and_does_not_grow() -> None:
    """A machine that always takes 37 MB more: the corrected prediction meets it, whatever was corrected before."""
    asked = recipe(kv__max_context=256)
    resolved = resolve(asked.model)
    plain = estimate(asked, resolved, machine())
    measured = plain.peak_bytes + 37 * MB
    runs = [
        run(recipe=asked, memory=Memory(peak_bytes=measured)).model_copy(
            update={"predicted": plain.as_prediction()}
        )
        for _ in range(6)
    ]
    learned = correction_of(errors_of(runs, asked, "h"))
    corrected = estimate(asked, resolved, machine(), None, learned)
    assert corrected.peak_bytes == measured
    assert corrected.overhead_bytes == plain.overhead_bytes + 37 * MB
    assert sum(size for _, size in corrected.parts) == corrected.peak_bytes
    assert (corrected.correction.bytes, corrected.correction.runs) == (37 * MB, 6)


def test_a_correction_never_makes_the_runtime_less_than_nothing() -> None:
    resolved = resolve(recipe().model)
    corrected = estimate(recipe(), resolved, machine(), None, Correction(-(10**12), 9))
    assert corrected.overhead_bytes == 0


def effective(scheme: str) -> Effective:
    return Effective(
        device="cpu",
        dtype="bf16",
        scheme=scheme,
        attention="sdpa",
        kv_kind="dynamic",
        max_context=64,
        threads=1,
        batching_mode="off",
    )


def test_a_checkpoint_that_came_quantized_teaches_of_itself_only() -> None:
    packed = recipe(model__source="folder", model__id="/models/nf4")
    came = run(recipe=packed, effective=effective("checkpoint:bitsandbytes nf4"))
    dense = run(effective=effective("none"))
    assert [error.run_id for error in errors_of([came, dense], recipe(), "h")] == [dense.id]
    assert came.id in [error.run_id for error in errors_of([came, dense], packed, "h")]
