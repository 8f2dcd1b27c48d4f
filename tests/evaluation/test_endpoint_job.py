"""The endpoint-fidelity job over servers of known probabilities: what it refuses, and a noise floor that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcp_core import texts
from mcp_core.documents import Document, text_set
from mcp_core.errors import Cancelled, InputError, McpError, OutOfMemory, WorkerDied
from mcp_core.evaluation import endpoint_job, served_fidelity
from mcp_core.evaluation.endpoints import Endpoint, Side
from mcp_core.evaluation.sides import Sides
from mcp_core.jobs import Job
from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity
from tests.evaluation.bigram_server import Bigrams, running, table

TEXT = text_set("two", [Document("a", text="the cat sat on the mat"), Document("b", text="it was warm there")])
P, Q, NEAR_P = table(1), table(2), table(1, sharpness=2.01)


class _Served:
    """Stands for ``serve``: a server a side, by the side's name; an error where one is given instead."""

    def __init__(self, **sides: Bigrams | McpError) -> None:
        self.sides = sides
        self.asked: list[str] = []

    @asynccontextmanager
    async def __call__(self, side: Side, **_: Any) -> AsyncIterator[Endpoint]:
        self.asked.append(side.name)
        server = self.sides[side.name.replace(" ", "_")]
        if isinstance(server, McpError):
            raise server
        async with running(server) as endpoint:
            yield endpoint


def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor: Bigrams | McpError) -> Fidelity:
    served = _Served(reference=Bigrams(P), candidate=Bigrams(Q), noise_floor=floor)
    monkeypatch.setattr(served_fidelity, "serve", served)
    monkeypatch.setattr("mcp_core.evaluation.sides.serve", served)
    resolved = SimpleNamespace(architecture=SimpleNamespace(model_type="llama"))
    plan: Any = SimpleNamespace(without_measuring=lambda: None, notes=lambda _: ("of the plan",), resolved=resolved)
    candidate = Side("candidate", Recipe(engine="endpoint"), "http://candidate")
    sides = Sides(Side("reference", Recipe()), candidate, plan)
    return asyncio.run(served_fidelity.judge_servers(Job(tmp_path, {}, {}), sides, TEXT))


def test_the_floor_is_the_reference_with_another_kernel(tmp_path, monkeypatch) -> None:
    found = judged(tmp_path, monkeypatch, Bigrams(NEAR_P))
    assert found.noise_floor is not None
    assert found.kl is not None
    assert 0 < found.noise_floor.mean < found.kl.mean / 100
    assert found.kl_over_floor == pytest.approx(found.kl.mean / found.noise_floor.mean)
    assert found.notes[0] == "of the plan"
    assert not any("no noise floor" in note for note in found.notes)


@pytest.mark.parametrize(
    "error",
    [OutOfMemory("Memory ran out.", "Unload."), WorkerDied("The worker died.", ""), McpError("It failed.", "")],
)
def test_a_floor_that_fails_leaves_the_answer_and_says_why(error: McpError, tmp_path, monkeypatch) -> None:
    whole = judged(tmp_path, monkeypatch, Bigrams(NEAR_P))
    found = judged(tmp_path, monkeypatch, error)
    assert (found.noise_floor, found.kl_over_floor) == (None, None)
    assert found.notes[-1] == f"no noise floor: {error.message}"
    assert (found.status, found.kl, found.perplexity) == ("measured", whole.kl, whole.perplexity)


def test_a_floor_that_is_cancelled_ends_the_job(tmp_path, monkeypatch) -> None:
    with pytest.raises(Cancelled):
        judged(tmp_path, monkeypatch, Cancelled("Stopped.", ""))


def test_a_server_is_not_judged_on_what_its_scheme_was_calibrated_on(tmp_path, monkeypatch) -> None:
    """As without --url; the servers are never asked."""
    served = _Served()
    monkeypatch.setattr(served_fidelity, "serve", served)
    passage = texts.builtin_calibration().documents[3].text
    assert passage is not None
    text = texts.add("mine.txt", passage.encode())
    recipe = Recipe().replace({"quantization.scheme": "torchao-int8-static"})
    urls = {"url": "http://candidate", "reference_url": "http://reference"}
    request = {"recipe": recipe.model_dump(mode="json"), "text_sha256": text.sha256, **urls}
    with pytest.raises(InputError, match="stand in the calibration text"):
        asyncio.run(endpoint_job.run(Job(tmp_path, request, {})))
    assert served.asked == []
