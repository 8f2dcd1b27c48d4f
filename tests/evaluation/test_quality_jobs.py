"""The jobs from request to answer, over servers at URLs; with real workers in a test marked slow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mcp_core import texts
from mcp_core.decision.store import Store
from mcp_core.errors import InputError, WorkerDied
from mcp_core.evaluation import endpoint_job, quality_jobs
from mcp_core.evaluation.length_drift import LengthDrift, builtin_prompts
from mcp_core.evaluation.task_check import TaskCheck
from mcp_core.jobs import Job, Outcome
from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity
from tests.evaluation.bigram_server import Bigrams, running, table

PROMPTS = [each.messages[-1].content for each in builtin_prompts()]
ITEM = {"context": "Is it?", "choices": ["yes", "no"], "answer": 0}


def ask(
    run: Callable[[Job], Awaitable[Outcome]], folder: Path, reference: Bigrams, candidate: Bigrams, **request: Any
) -> dict[str, Any]:
    async def started() -> Outcome:
        async with running(reference) as one, running(candidate) as other:
            asked = {"recipe": Recipe().model_dump(mode="json"), "url": other.client.url}
            asked |= {"reference_url": one.client.url} | request
            return await run(Job(folder, asked, {}))

    outcome = asyncio.run(started())
    assert outcome.state == "done"
    return outcome.result


def stages(folder: Path) -> list[str]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return list(dict.fromkeys(json.loads(line)["stage"] for line in lines))


def own_text() -> str:
    content = "\n\n".join("the cat sat on the mat. it was warm there, " * 60 for _ in range(3))
    return texts.add("own.txt", content.encode()).sha256


def test_fidelity_of_an_endpoint_is_answered_and_kept(tmp_path: Path) -> None:
    answer = ask(endpoint_job.run, tmp_path, Bigrams(table(1)), Bigrams(table(1)), text_sha256=own_text())
    found = Fidelity.model_validate(answer["fidelity"])
    assert (found.status, found.path, found.engine) == ("measured", "endpoint", "endpoint")
    assert found.kl is not None
    assert found.kl.mean == 0
    assert found.key is not None
    with Store() as store:
        kept = store.fidelity(found.key)
    assert kept is not None
    assert kept.fidelity == found
    assert kept.recipe.model.source == "endpoint"
    assert stages(tmp_path) == ["reference", "candidate"]


def test_a_candidate_that_is_not_there_is_known_before_the_reference_replies(tmp_path: Path) -> None:
    reference = Bigrams(table(1))

    async def started() -> None:
        async with running(reference) as one:
            urls = {"url": "http://127.0.0.1:9", "reference_url": one.client.url}
            asked = {"recipe": Recipe().model_dump(mode="json"), "max_tokens": 8} | urls
            await quality_jobs.drift(Job(tmp_path, asked, {}))

    with pytest.raises(WorkerDied, match="does not answer"):
        asyncio.run(started())
    assert not (tmp_path / "events.jsonl").exists()


def test_a_server_without_prompt_scores_is_not_measurable_and_says_why(tmp_path: Path) -> None:
    llama_cpp = Bigrams(table(1), echoes=False)
    answer = ask(endpoint_job.run, tmp_path, Bigrams(table(1)), llama_cpp, text_sha256=own_text())
    found = Fidelity.model_validate(answer["fidelity"])
    assert found.status == "not-measurable"
    assert "gives no log-probabilities of a prompt" in found.reason


def test_drift_of_the_built_in_prompts(tmp_path: Path) -> None:
    short, long = (dict.fromkeys(PROMPTS, (text, "stop")) for text in ("a b c d", "a b c d e"))
    answer = ask(
        quality_jobs.drift,
        tmp_path,
        Bigrams(table(1), replies=short),
        Bigrams(table(1), replies=long),
        max_tokens=32,
    )
    drift = LengthDrift.model_validate(answer)
    assert drift.ratio is not None
    assert (drift.ratio.value, len(drift.pairs), drift.pairs[0].diverges_at) == (1.25, 16, 4)
    assert "16 of 16 replies" in (tmp_path / "events.jsonl").read_text()


def test_a_text_without_prompts_has_no_drift(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompts, only passages"):
        ask(
            quality_jobs.drift, tmp_path, Bigrams(table(1)), Bigrams(table(1)), text_sha256=own_text(), max_tokens=9
        )


def test_a_task_check_of_own_items(tmp_path: Path) -> None:
    answer = ask(quality_jobs.tasks, tmp_path, Bigrams(table(1)), Bigrams(table(1)), name="mine", items=[ITEM] * 3)
    check = TaskCheck.model_validate(answer)
    assert (check.name, len(check.items), check.lost, check.won) == ("mine", 3, 0, 0)
