from __future__ import annotations

import pytest

from mcp_core.models.calibration_memory import calibrating_bytes, held_out_count
from mcp_core.models.shapes import architecture_of
from mcp_core.recipe import ModelRef, Recipe

SEVEN_B = architecture_of(ModelRef(source="shape", id="llama-2-7b"))
SMOOTH = "torchao-int8-static-smoothquant"


def asked(scheme: str, **options: float) -> Recipe:
    changes = {"quantization.scheme": scheme, "dtype": "bf16"}
    return Recipe().replace(changes | {f"quantization.{name}": value for name, value in options.items()})


def test_schemes_that_are_not_calibrated_take_nothing() -> None:
    assert calibrating_bytes(asked("torchao-int8-dynamic"), SEVEN_B) == 0
    assert calibrating_bytes(asked("none"), SEVEN_B) == 0


def test_one_passage_is_computed_at_a_time() -> None:
    expected = 256 * 3 * (4096 + 11008) * 2
    assert calibrating_bytes(asked("torchao-int8-static"), SEVEN_B) == expected
    assert calibrating_bytes(asked(SMOOTH, alpha=0.5), SEVEN_B) == expected


def test_a_search_computes_four_and_holds_their_logits_twice() -> None:
    activations = 4 * 256 * 3 * (4096 + 11008) * 2
    logits = 128 * 32000 * (2 * 4 * 2 + 5 * 4)
    assert calibrating_bytes(asked(SMOOTH), SEVEN_B) == activations + logits


@pytest.mark.parametrize(("samples", "held"), [(1, 1), (4, 1), (8, 2), (16, 4), (4096, 4)])
def test_a_quarter_is_held_out(samples: int, held: int) -> None:
    assert held_out_count(samples) == held
