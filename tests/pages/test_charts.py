"""charts: one stable colour per Recipe that can be seen in both themes; peaks survive thinning."""

from __future__ import annotations

import tomllib
from pathlib import Path

import fake_workbench as fakes
import pytest

from mcp_core.presets import bundled
from pages._ui import charts

CONFIG = tomllib.loads((Path(__file__).resolve().parents[2] / ".streamlit" / "config.toml").read_text())["theme"]


def _luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21() -> None:
    assert _contrast("#000000", "#ffffff") == pytest.approx(21.0)


@pytest.mark.parametrize("background", ["#ffffff", "dark.backgroundColor", "light.secondaryBackgroundColor"])
def test_every_chart_colour_can_be_seen(background: str) -> None:
    theme, _, name = background.partition(".")
    colour = CONFIG[theme][name] if name else background
    assert min(_contrast(each, colour) for each in charts.PALETTE) >= 3.0


@pytest.mark.parametrize(("theme", "background"), [("light", "#ffffff"), ("dark", "#12161c")])
def test_text_and_buttons_pass_contrast(theme: str, background: str) -> None:
    assert _contrast(CONFIG[theme]["textColor"], background) >= 7.0
    assert _contrast("#ffffff", CONFIG[theme]["primaryColor"]) >= 4.5


def test_the_configured_colours_are_the_palette() -> None:
    for theme in (CONFIG, CONFIG["light"], CONFIG["dark"]):
        assert tuple(theme["chartCategoricalColors"]) == charts.PALETTE
    assert len(set(charts.PALETTE)) == 10


def test_a_recipes_colour_is_stable_and_recipes_differ() -> None:
    fingerprint = bundled().fingerprint
    assert charts.colour_of(fingerprint) == charts.colour_of(bundled().fingerprint)
    looks = set()
    for threads in range(1, 60):
        fingerprint = bundled().replace({"threads": threads}).fingerprint
        looks.add((charts.colour_of(fingerprint), charts.symbol_of(fingerprint)))
    assert len(looks) > 35
    assert {colour for colour, _ in looks} == set(charts.PALETTE)


def test_thinning_keeps_the_peak_and_the_gaps() -> None:
    points = [(float(at), 1.0) for at in range(3600)]
    points[1234] = (1234.0, 99.0)
    assert max(value or 0 for _, value in charts.thin(points)) == 99.0
    assert len(charts.thin(points)) == 180
    assert charts.thin([(0.0, None), (1.0, None)]) == [(0.0, None), (1.0, None)]
    assert charts.thin([]) == []


@pytest.mark.parametrize(
    ("names", "top", "kind"),
    [
        (["one"], 8, "plain"),
        (["running", "queued"], 28, "plain"),
        (["SmolLM2-135M-Instruct (worker-1)", "SmolLM2-135M-Instruct (worker-2)"], 44, "plain"),
        ([f"SmolLM2-135M-Instruct (worker-{number})" for number in range(4)], 28, "scroll"),
    ],
)
def test_a_legend_never_lies_over_the_axis(names: list[str], top: int, kind: str) -> None:
    spec = charts.live_chart({name: [] for name in names}, "%", span=(0.0, 60.0))
    assert (spec["grid"]["top"], spec["legend"]["type"]) == (top, kind)


def test_a_live_chart_is_in_ms_with_units_and_one_line_a_series() -> None:
    spec = charts.live_chart({"draw": [(10.0, 5.0), (11.0, None)], "limit": []}, "%", span=(0.0, 60.0), top=100)
    assert spec["series"][0]["data"] == [[10_000, 5.0], [11_000, None]]
    assert [series["name"] for series in spec["series"]] == ["draw", "limit"]
    assert (spec["xAxis"]["min"], spec["xAxis"]["max"]) == (0, 60_000)
    assert spec["yAxis"]["max"] == 100
    assert spec["yAxis"]["axisLabel"]["formatter"] == "{value} %"
    assert spec["tooltip"]["valueFormatter"] == "%.1f %%"


def test_an_end_that_is_no_round_number_has_a_label() -> None:
    axis = charts.live_chart({"used": []}, "GB", span=(0.0, 60.0), top=25.3)["yAxis"]
    assert (axis["max"], axis["interval"]) == (25.3, 25.3)
    assert "showMaxLabel" not in axis["axisLabel"]


def test_requests_are_bars_from_sent_to_last_token() -> None:
    figure = charts.requests_figure(fakes.records(3), "#2f7de1")
    waiting, streaming, failed = figure.data
    assert list(waiting.base) == [0.0, 1.07]
    assert list(waiting.x) == [0.08, 0.081]
    assert list(streaming.base) == pytest.approx([0.08, 1.151])
    assert list(streaming.x) == pytest.approx([0.98, 0.98])
    assert list(failed.y) == [2]
    assert list(failed.text) == ["The reply broke off."]


def test_only_the_first_requests_are_drawn() -> None:
    figure = charts.requests_figure(fakes.records(charts.MOST_REQUESTS + 50), "#2f7de1")
    assert len(figure.data[0].x) == charts.MOST_REQUESTS
