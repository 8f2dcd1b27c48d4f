"""The confirm job: an exported command started, or a URL, the same workload measured, the answer's evidence raised.

This file does not know how a command is made (``decision/targets``) or judged (``decision/confirmation.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from mcp_core.decision.confirmation import confirm, confirmed_decision, raise_evidence
from mcp_core.decision.decision import Decision
from mcp_core.decision.export import export
from mcp_core.decision.facts import CONFIRMATION
from mcp_core.decision.shipment import Shipment, of_decision, of_run
from mcp_core.decision.store import Store
from mcp_core.errors import error_from
from mcp_core.evaluation.benchmark import measure
from mcp_core.evaluation.endpoint_recipe import endpoint_recipe
from mcp_core.evaluation.exported_server import started
from mcp_core.evaluation.prompts import Vocabulary
from mcp_core.hardware import detect
from mcp_core.jobs import Job, Outcome
from mcp_core.models.catalog import resolve
from mcp_core.models.synthetic_tokenizer import BOS_ID, EOS_ID
from mcp_core.recipe import Recipe
from mcp_core.results import Comparable, RequestRecord, Run

__all__ = ["run"]


async def run(job: Job) -> Outcome:
    """Request: target, engine, url, and run or decision (documents). Secrets: store_url, hub_token.

    The result is {confirmation, decision, run}: what was predicted beside what was measured, the Decision raised
    where it holds, and the Run, which is stored whatever came of it. Raises what kept the deployment from being
    asked at all: then nothing was measured, and no Run is left.
    """
    shipment = _shipment(job.request)
    bundle = export(shipment, job.request["target"], job.request.get("engine"))
    url = job.request.get("url")
    served: AbstractAsyncContextManager[str] = (
        nullcontext(url)
        if url
        else started(
            bundle, shipment.recipe, lambda words: job.tell("load", None, words), job.secrets.get("hub_token")
        )
    )
    with Store(job.secrets.get("store_url")) as store:
        async with served as where:
            measured = await _measure(job, store, shipment, bundle.engine, where)
        if measured.status == "cancelled" and measured.failure is not None:
            raise error_from(measured.failure.model_dump())
        found = confirm(shipment, measured, bundle.target, bundle.engine, url)
        if found.holds:
            raise_evidence(store, shipment.run_id, found.evidence)
            measured = raise_evidence(store, measured.id, found.evidence) or measured
    decided = confirmed_decision(shipment.decision, found) if shipment.decision else None
    return Outcome("done", None, _answer(found, decided, measured))


def _shipment(request: dict[str, Any]) -> Shipment:
    run = Run.model_validate(request["run"]) if request.get("run") else None
    if request.get("decision") is not None:
        return of_decision(Decision.from_dict(request["decision"]), lambda _: run)
    assert run is not None, "who asks gives one of the two"
    return of_run(run)


async def _measure(job: Job, store: Store, shipment: Shipment, engine: str, url: str) -> Run:
    """With new prompts: those of the Run may be in a cache by now. It is no configuration to choose.

    Raises the failure of a deployment that no request reached.
    """
    why = f"{CONFIRMATION} the deployment of Run {shipment.run_id}"
    marked: list[Run] = []

    def keep(run: Run, records: Sequence[RequestRecord], telemetry: Any) -> None:
        if run.failure is not None and not records:
            raise error_from(run.failure.model_dump())
        comparable = Comparable(ok=False, reasons=(why, *run.comparable.reasons))
        marked.append(run.model_copy(update={"comparable": comparable}))
        store.add(marked[0], records, telemetry)

    workload = shipment.workload.replace({"repeat": shipment.workload.repeat + 1})
    recipe = endpoint_recipe(Recipe.from_dict({"engine": engine if engine != "transformers" else "endpoint"}), url)
    vocabulary = _vocabulary(shipment.recipe)
    await measure(url, None, recipe, workload, detect(), on_progress=job.report, keep=keep, vocabulary=vocabulary)
    return marked[0]


def _vocabulary(recipe: Recipe) -> Vocabulary | None:
    """Of a random-weight shape: words would make prompts several times as long, for its tokenizer knows none."""
    if recipe.model.source != "shape":
        return None
    return Vocabulary(resolve(recipe.model).architecture.vocab, frozenset({BOS_ID, EOS_ID}))


def _answer(found: Any, decided: Decision | None, measured: Run) -> dict[str, Any]:
    return {
        "confirmation": found.model_dump(mode="json"),
        "decision": decided.model_dump(mode="json") if decided else None,
        "run": measured.model_dump(mode="json"),
    }
