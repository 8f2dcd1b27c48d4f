"""Numbers as people read them: one rule per quantity, a unit in every text, "–" for what was not measured.

This file does not know where a number comes from.
"""

from __future__ import annotations

import functools
from datetime import UTC, datetime

from mcp_core.recipe import Recipe
from mcp_core.results import Memory, Run
from mcp_core.schemes import SCHEMES

NOT_MEASURED = "–"
BUNDLED_TITLE = "SmolLM2-135M-Instruct"
# Engines that a line about a Recipe does not name: our own, and one that is not known.
_UNNAMED = ("transformers", "endpoint")
_BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def number(value: float | None) -> str:
    """Three significant digits, thousands separated: 0.0123, 1.23, 12.3, 123, 12,345."""
    if value is None:
        return NOT_MEASURED
    magnitude = abs(value)
    if magnitude >= 100 or magnitude == 0:
        return f"{value:,.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if magnitude >= 1 else f"{value:.3g}"


def one_digit(value: float) -> str:
    """One significant digit and no exponent, as an error is given: 0.02, 20, 0.00004."""
    return f"{float(f'{value:.1g}'):,.12f}".rstrip("0").rstrip(".")


def sentence(text: str) -> str:
    """The text with a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:]


def size(value: float | None) -> str:
    """Bytes in decimal units (1 GB = 10^9 bytes): "269 MB", "1.24 GB"."""
    if value is None:
        return NOT_MEASURED
    for scale, unit in _BYTE_UNITS:
        if abs(value) >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{value:,.0f} bytes"


def ms(value: float | None) -> str:
    """Milliseconds; from ten seconds on as seconds."""
    if value is None:
        return NOT_MEASURED
    return f"{number(value)} ms" if abs(value) < 10_000 else f"{number(value / 1000)} s"


def rate(value: float | None) -> str:
    """Tokens per second."""
    return NOT_MEASURED if value is None else f"{number(value)} tok/s"


def duration(seconds: float | None) -> str:
    """ "0.8 s", "12 s", "3 min 20 s", "1 h 05 min"."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def about(seconds: float | None) -> str:
    """A duration that is only known roughly: "about 12 s", "about 3 min"."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 3600 else f"about {seconds / 3600:.1f} h"


def ago(moment: datetime, now: datetime | None = None) -> str:
    """ "just now", "5 min ago", "3 h ago", then the date."""
    elapsed_s = ((now or datetime.now(UTC)) - moment).total_seconds()
    if elapsed_s < 60:
        return "just now"
    if elapsed_s < 3600:
        return f"{elapsed_s // 60:.0f} min ago"
    return f"{elapsed_s // 3600:.0f} h ago" if elapsed_s < 86_400 else f"on {moment:%Y-%m-%d}"


def count(amount: int, noun: str) -> str:
    """ "1 request", "16 requests"."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def model_name(recipe: Recipe) -> str:
    """The model's id as a short name: the last part of a path or Hub id, the bundled model's title."""
    if recipe.model.source == "bundled":
        return BUNDLED_TITLE
    return recipe.model.id.rstrip("/").rsplit("/", 1)[-1]


def scheme_title(name: str) -> str:
    """The scheme's title; "unquantized" for none."""
    if name == "none":
        return "unquantized"
    return SCHEMES[name].title if name in SCHEMES else name  # type: ignore[index]


def scheme_of(recipe: Recipe) -> str:
    """The title of the Recipe's scheme; "as stored" for none on a checkpoint, which may come quantized."""
    name = recipe.quantization.scheme
    return recipe.unquantized_words if name == "none" else scheme_title(name)


def recipe_line(recipe: Recipe) -> str:
    """ "fp32 · unquantized": what is special about how a model is served. A checkpoint may come quantized.

    Another engine than transformers is named; llama.cpp has no dtype beside the file's own. Of a server elsewhere
    nothing more is known.
    """
    if recipe.model.source == "endpoint":
        return "settings not known" if recipe.engine in _UNNAMED else f"{recipe.engine} · settings not known"
    if recipe.engine == "llama.cpp":
        return f"llama.cpp · {scheme_title(recipe.quantization.scheme)}"
    engine = "" if recipe.engine in _UNNAMED else f"{recipe.engine} · "
    doubly = " · double quantization" if recipe.quantization.double_quant else ""
    return f"{engine}{recipe.dtype} · {scheme_of(recipe)}{doubly}"


def run_notes(run: Run) -> str:
    """What limits a Run's worth, a word or two each: "smoke test · too few requests · noisy"."""
    notes = ["smoke test"] if run.workload.smoke_test else []
    if run.measurement is not None and run.measurement.ttft_ms.p95 is None:
        notes.append("too few requests")
    reasons = (reason.partition(":")[0] for reason in run.comparable.reasons)
    return " · ".join(dict.fromkeys((*notes, *reasons)))


def device_of(run: Run) -> str:
    """The name of what the model ran on."""
    device = run.hardware.device(run.effective.device if run.effective else run.recipe.device)
    return device.name if device and device.kind == "cuda" else run.hardware.cpu


_ENERGY = "What the GPU drew from the first request to the last, by NVML's counter of energy / output tokens; J."


@functools.cache
def _definitions() -> dict[str, str]:
    from mcp_core.evaluation.metrics import DEFINITIONS

    memory = {name: field.description for name, field in Memory.model_fields.items() if field.description}
    return memory | DEFINITIONS | {"energy_j_per_token": _ENERGY}


def definition(name: str) -> str | None:
    """What a figure means, by its field name in Measurement or Memory: the text of a tooltip."""
    return _definitions().get(name)
