"""format: one rule per quantity, a unit in every text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import fake_workbench as fakes
import pytest

from mcp_core.presets import bundled, recipe_preset
from mcp_core.results import Measurement, Memory
from pages._ui import format as fmt


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0 bytes"),
        (999, "999 bytes"),
        (46_080, "46.1 kB"),
        (538_000_000, "538 MB"),
        (1_240_000_000, "1.24 GB"),
        (85_520_809_984, "85.5 GB"),
        (2e12, "2.00 TB"),
    ],
)
def test_size(value: float | None, text: str) -> None:
    assert fmt.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.04, "0.04 ms"), (8.25, "8.25 ms"), (31.52, "31.5 ms"), (1061, "1,061 ms"), (12_340, "12.3 s")],
)
def test_ms(value: float | None, text: str) -> None:
    assert fmt.ms(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.84, "0.8 s"), (12.2, "12 s"), (200, "3 min 20 s"), (3900, "1 h 05 min")]
)
def test_duration(seconds: float | None, text: str) -> None:
    assert fmt.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "about 1 s"), (12.4, "about 12 s"), (170, "about 3 min"), (5400, "about 1.5 h")]
)
def test_about(seconds: float, text: str) -> None:
    assert fmt.about(seconds) == text


def test_rate_and_count() -> None:
    assert fmt.rate(29.94) == "29.9 tok/s"
    assert fmt.rate(None) == "–"
    assert (fmt.count(1, "request"), fmt.count(1600, "request")) == ("1 request", "1,600 requests")


@pytest.mark.parametrize(
    ("elapsed", "text"),
    [
        (timedelta(seconds=20), "just now"),
        (timedelta(minutes=5), "5 min ago"),
        (timedelta(hours=3), "3 h ago"),
        (timedelta(days=3), "on 2026-11-17"),
    ],
)
def test_ago(elapsed: timedelta, text: str) -> None:
    now = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    assert fmt.ago(now - elapsed, now) == text


def test_recipes_and_runs_in_words() -> None:
    nf4 = bundled().replace({"quantization.scheme": "bnb-nf4", "quantization.double_quant": True})
    assert fmt.recipe_line(bundled()) == "fp32 · unquantized"
    assert fmt.recipe_line(nf4) == "fp32 · bitsandbytes 4-bit NF4 · double quantization"
    hub = bundled().replace({"model": {"source": "hub", "id": "owner/name", "revision": None, "sha256": None}})
    assert fmt.model_name(hub) == "name"
    assert fmt.run_notes(fakes.ok_run()) == "smoke test · too few requests"
    assert fmt.run_notes(fakes.failed_run()) == "smoke test"


def test_every_figure_that_pages_show_has_a_definition() -> None:
    shown = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms", "output_tok_s", "peak_bytes", "weights_bytes", "p95")
    assert [name for name in shown if not fmt.definition(name)] == []
    assert fmt.definition("no such figure") is None
    assert set(shown[:5]) <= set(Measurement.model_fields)
    assert set(shown[5:7]) <= set(Memory.model_fields)


@pytest.mark.parametrize(("value", "text"), [(0.0187, "0.02"), (21.3, "20"), (4.2e-5, "0.00004"), (0.0, "0")])
def test_an_error_has_one_digit_and_no_exponent(value: float, text: str) -> None:
    assert fmt.one_digit(value) == text


def test_an_engine_that_is_not_transformers_is_named_in_a_recipes_line() -> None:
    assert fmt.recipe_line(recipe_preset("bundled-llama.cpp")) == "llama.cpp · GGUF, as the file has it"
    assert fmt.recipe_line(bundled().replace({"engine": "vllm"})) == "vllm · fp32 · unquantized"
    assert "transformers" not in fmt.recipe_line(bundled())
    elsewhere = bundled().replace({"model": {"source": "endpoint", "id": "http://127.0.0.1:1"}, "engine": "vllm"})
    assert fmt.recipe_line(elsewhere) == "vllm · settings not known"


def test_a_checkpoint_that_may_come_quantized_is_never_called_unquantized() -> None:
    assert fmt.scheme_of(bundled()) == "unquantized"
    assert fmt.scheme_of(bundled().replace({"model": {"source": "hub", "id": "owner/model"}})) == "as stored"
