"""The founding article's table beside measured rows: memory, latency and throughput by size and bits.

The article names neither hardware nor workload. Rows are a sweep's, or drawn from stored Runs of its workload: more
merging does not bring. This file does not know how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mcp_core.decision.facts import RunFacts
from mcp_core.decision.store import Store
from mcp_core.decision.sweep_record import CellRecord
from mcp_core.decision.traffic import traffic_key
from mcp_core.evaluation.sweep_table import SweepRow
from mcp_core.recipe import Recipe
from mcp_core.results import Failure
from mcp_core.schemes import SCHEMES
from mcp_core.sweep_plan import Cell
from mcp_core.sweep_presets import article_plan
from mcp_core.workload import Workload

__all__ = ["ARTICLE", "ArticleFigures", "ArticleRow", "article_rows", "is_full_size", "stored_rows"]

_BITS = {0: "none", 8: "8-bit", 4: "4-bit"}


@dataclass(frozen=True, slots=True)
class ArticleFigures:
    """One row: memory in GB, latency in ms, throughput in requests/s; None was not measured."""

    memory_gb: float | None
    latency_ms: float | None
    requests_s: float | None


ARTICLE: dict[tuple[str, str], ArticleFigures] = {
    ("7B", "none"): ArticleFigures(14, 250, 20),
    ("7B", "8-bit"): ArticleFigures(7, 280, 18),
    ("7B", "4-bit"): ArticleFigures(3.5, 320, 15),
    ("13B", "none"): ArticleFigures(26, 450, 12),
    ("13B", "8-bit"): ArticleFigures(13, 500, 10),
    ("13B", "4-bit"): ArticleFigures(6.5, 550, 8),
}


@dataclass(frozen=True, slots=True)
class ArticleRow:
    """One measured scheme beside the article's row. ``model`` is what was really measured.

    Memory is the weights', as in the article. ``reason`` says why there are no figures, ``note`` what
    they are not good for.
    """

    size: str
    bits: str
    scheme: str
    model: str
    article: ArticleFigures
    measured: ArticleFigures
    peak_gb: float | None
    note: str
    reason: str
    run_id: str | None


def article_rows(rows: Sequence[SweepRow]) -> tuple[ArticleRow, ...]:
    """The table in the article's order; rows of models that stand for 7B and 13B by their order."""
    in_order = sorted(rows, key=lambda row: row.cell.position)
    models = list(dict.fromkeys(row.cell.recipe.model for row in in_order))
    sizes = dict(zip(models, ("7B", "13B"), strict=False))
    return tuple(_row(row, sizes[row.cell.recipe.model]) for row in in_order if row.cell.recipe.model in sizes)


def stored_rows(store: Store) -> tuple[SweepRow, ...]:
    """The plan's cells with the newest Run of each on one kind of device, that of the newest of all; empty without
    any Run of the article. Raises StoreError."""
    workload = article_plan(on_gpu=False).workload
    found = [each for each in store.facts() if _is_of(each, workload)]
    here = [each for each in found if each.device == found[0].device]
    newest: dict[str, RunFacts] = {}
    for each in here:
        newest.setdefault(_key(Recipe.from_json(each.recipe)), each)
    cells = article_plan(on_gpu=here[0].device_kind == "cuda").cells() if here else ()
    rows = tuple(_stored_row(store, cell, newest) for cell in cells)
    return rows if any(row.run for row in rows) else ()


def _is_of(facts: RunFacts, workload: Workload) -> bool:
    named = (facts.workload, facts.traffic, facts.load) == (workload.name, traffic_key(workload), workload.load)
    return named and facts.status in ("ok", "failed", "refused")


def _key(recipe: Recipe) -> str:
    """The same for a plan's Recipe and the resolved one of its Run."""
    model = recipe.model.model_copy(update={"sha256": None})
    return recipe.model_copy(update={"model": model, "device": "auto", "threads": None}).fingerprint


def _stored_row(store: Store, cell: Cell, newest: Mapping[str, RunFacts]) -> SweepRow:
    facts = newest.get(_key(cell.recipe))
    run = store.get(facts.id) if facts else None
    if run is not None and run.status == "ok":
        return SweepRow(CellRecord(cell.position, cell.name, cell.recipe, "done"), "measure", run, (run,), None, "")
    none = Failure(kind="not_found", message="No Run of it is stored.")
    failure = (run.failure if run else None) or none
    return SweepRow(
        CellRecord(cell.position, cell.name, cell.recipe, "failed", None, failure), None, run, (), None, ""
    )


def is_full_size(rows: Sequence[ArticleRow]) -> bool:
    """Whether the models are of the article's sizes, not small ones that stand for them."""
    return all("llama-2" in row.model for row in rows)


def _row(row: SweepRow, size: str) -> ArticleRow:
    recipe, run = row.cell.recipe, row.run
    bits = _BITS[SCHEMES[recipe.quantization.scheme].bits]
    measured, memory = (run.measurement, run.memory) if run else (None, None)
    return ArticleRow(
        size=size,
        bits=bits,
        scheme=recipe.quantization.scheme,
        model=_model(recipe),
        article=ARTICLE[size, bits],
        measured=ArticleFigures(
            _gb(memory.weights_bytes if memory else None),
            measured.e2e_ms.p50 if measured else None,
            measured.requests_s if measured else None,
        ),
        peak_gb=_gb(memory.peak_bytes if memory else None),
        note="; ".join(run.comparable.reasons) if run else "",
        reason=row.reason,
        run_id=run.id if run else None,
    )


def _model(recipe: Recipe) -> str:
    """ "llama-2-7b shape", or "0.11B shape" of a small one that stands for it."""
    shape = recipe.model.shape
    if shape is None:
        return f"{recipe.model.id} shape"
    heads = shape.head_dim or shape.hidden // shape.heads
    attention = 2 * shape.hidden * heads * (shape.heads + shape.kv_heads)
    layer = attention + 3 * shape.hidden * shape.intermediate
    parameters = shape.layers * layer + shape.vocab * shape.hidden * (1 if shape.tied else 2)
    return f"{parameters / 1e9:.2f}B shape"


def _gb(size: int | None) -> float | None:
    return None if size is None else size / 1e9
