"""A Recipe of another engine judged by the fidelity job: who is asked first, in which form, and what is kept."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mcp_core import devices, texts
from mcp_core.decision.store import Store
from mcp_core.documents import Document, text_set
from mcp_core.evaluation import fidelity_job, fidelity_plan, served_fidelity
from mcp_core.evaluation.endpoints import Endpoint, Side
from mcp_core.evaluation.fidelity_plan import make_plan
from mcp_core.evaluation.sides import Sides
from mcp_core.hardware import detect
from mcp_core.jobs import Job, Outcome
from mcp_core.presets import recipe_preset
from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity, Mean
from tests.evaluation.bigram_server import Bigrams, running, table

P, Q, NEAR_P = table(1), table(2), table(1, sharpness=2.01)
TEXT = text_set("two", [Document("a", text="the cat sat on the mat"), Document("b", text="it was warm there")])


class Served:
    """Stands for ``serve``: a server of known probabilities a side, by the side's name."""

    def __init__(self, **sides: Bigrams) -> None:
        self.sides = sides
        self.asked: list[str] = []

    @asynccontextmanager
    async def __call__(self, side: Side, **_: Any) -> AsyncIterator[Endpoint]:
        self.asked.append(side.name)
        async with running(self.sides[side.name.replace(" ", "_")]) as endpoint:
            yield endpoint


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    made = Served(reference=Bigrams(P), candidate=Bigrams(Q), noise_floor=Bigrams(NEAR_P))
    monkeypatch.setattr("mcp_core.evaluation.sides.serve", made)
    return made


def run(folder: Path, recipe: Recipe, **request: Any) -> Outcome:
    asked = {"recipe": recipe.model_dump(mode="json"), "text_sha256": own_text()} | request
    return asyncio.run(fidelity_job.run(Job(folder, asked, {})))


def own_text() -> str:
    content = "\n\n".join("the cat sat on the mat. it was warm there, " * 60 for _ in range(3))
    return texts.add("own.txt", content.encode()).sha256


def test_the_job_judges_llama_cpp_by_its_server_keeps_it_and_knows_it_next_time(tmp_path, served) -> None:
    pytest.importorskip("xllamacpp")
    recipe = recipe_preset("bundled-llama.cpp")
    outcome = run(tmp_path, recipe)
    found = Fidelity.model_validate(outcome.result["fidelity"])
    assert served.asked == ["reference", "candidate", "noise floor"]
    assert (found.status, found.path, found.engine) == ("measured", "endpoint", "llama.cpp")
    plan = make_plan(recipe, detect(), text_sha256=own_text())
    assert (found.key, found.reference) == (plan.key, plan.reference_title)
    assert Side("candidate", plan.recipe).title == "gguf on llama.cpp"
    assert found.numerics_key == plan.recipe.numerics_key
    assert found.kl is not None
    assert found.noise_floor is not None
    assert found.kl.mean > 100 * found.noise_floor.mean > 0
    assert found.truncation is not None
    assert f"{found.truncation.tail_mass:.1%} of the probability, as one: a lower bound" in " ".join(found.notes)
    with Store() as store:
        kept = store.fidelity(found.key or "")
        assert store.noise_floor(plan.floor_key or "") == found.noise_floor
    assert kept is not None
    assert kept.recipe.engine == "llama.cpp"
    again = run(tmp_path, recipe)
    assert again.result == {"fidelity": outcome.result["fidelity"], "cached": True}
    assert len(served.asked) == 3
    # Measured again, it finds the floor anew; a server that says what the reference says is at distance 0.
    served.sides["candidate"] = Bigrams(P)
    fresh = Fidelity.model_validate(run(tmp_path, recipe, fresh=True).result["fidelity"])
    assert fresh.kl is not None
    assert (fresh.kl.mean, served.asked[3:]) == (0, ["reference", "candidate", "noise floor"])


def test_workers_of_a_sweeps_job_are_within_the_leases_of_whoever_started_the_sweep() -> None:
    """The app holds the device; the sweep is its child, and the fidelity job the sweep's."""
    told = "from mcp_core.evaluation.endpoints import _leases_above; print(*_leases_above())"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {told!r}], check=True)"
    with devices.acquire("cpu", "measure", "a sweep") as lease:
        found = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert lease.holder.id in found.stdout.split()
    assert devices.leases_of(os.getpid()) == ()


def test_a_server_without_prompt_scores_is_an_answer_that_says_so(tmp_path, served, monkeypatch) -> None:
    recipe = Recipe().replace({"engine": "vllm", "device": "cpu"})
    sides = sides_of(recipe)
    served.sides["candidate"] = Bigrams(Q, echoes=False)
    found = asyncio.run(served_fidelity.judge_servers(Job(tmp_path, {}, {}), sides, TEXT))
    assert (found.status, served.asked) == ("not-measurable", ["candidate"])
    assert "gives no log-probabilities" in found.reason


def sides_of(recipe: Recipe) -> Sides:
    """As the job's, without asking whether vLLM is here."""
    transformers = fidelity_plan.make_plan(Recipe(device="cpu"), detect())
    plan = replace(transformers, recipe=recipe, candidate=recipe, path="endpoint")
    return Sides(Side("reference", plan.reference), Side("candidate", recipe), plan)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_server_of_another_engine_is_asked_first_and_the_reference_in_the_same_form(
    engine: str, tmp_path, served
) -> None:
    served.sides["candidate"] = Bigrams(Q, refuses=("return_tokens_as_token_ids",), most=5)
    floors: list[Mean] = []
    found = asyncio.run(
        served_fidelity.judge_servers(
            Job(tmp_path, {}, {}),
            sides_of(Recipe().replace({"engine": engine, "device": "cpu"})),
            TEXT,
            keep_floor=floors.append,
        )
    )
    assert served.asked == ["candidate", "reference", "noise floor"]
    assert found.truncation is not None
    assert (found.engine, found.truncation.top_k) == (engine, 5)
    for name in ("reference", "noise_floor"):
        forms = {(body["logprobs"], "return_tokens_as_token_ids" in body) for body in served.sides[name].bodies}
        assert forms == {(5, False)}
    assert floors == [found.noise_floor]
    assert f"scored by {engine}'s server, in prefill passes of its own" in found.notes
    # A floor that is known is not found again.
    del served.asked[:]
    known = Mean(mean=0.5)
    again = asyncio.run(
        served_fidelity.judge_servers(
            Job(tmp_path, {}, {}), sides_of(Recipe().replace({"engine": engine})), TEXT, floor=known
        )
    )
    assert served.asked == ["candidate", "reference"]
    assert again.noise_floor == known
