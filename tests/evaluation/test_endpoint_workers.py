"""The endpoint instrument over real workers of a tiny model, and beside lm-eval; a minute or more each."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from mcp_core import texts
from mcp_core.documents import text_set
from mcp_core.evaluation.endpoint_fidelity import common, compare, fidelity, score_all
from mcp_core.evaluation.endpoints import Endpoint, Side, serve
from mcp_core.evaluation.fidelity import judge
from mcp_core.evaluation.fidelity_plan import make_plan
from mcp_core.evaluation.task_check import answers, builtin_items
from mcp_core.hardware import detect
from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity
from mcp_core.text_files import split_prose

sys.path.insert(0, str(Path(__file__).parents[1]))

pytestmark = pytest.mark.slow

PROSE = (
    "Anne hoped she had outlived the age of blushing; but the age of emotion she certainly had not. "
    "The sea was rough, and the wind came in from the east with a smell of salt and wood smoke. "
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    from tiny_llama import build_tiny_llama

    folder = build_tiny_llama(tmp_path / "tiny", context=512)
    plain = Recipe.from_dict({"model": {"source": "folder", "id": str(folder)}, "dtype": "fp32", "threads": 1})
    return plain.replace({"device": "cpu"})


async def through_workers(reference: Side, candidate: Side) -> Fidelity:
    text = text_set("prose", split_prose(PROSE * 2, "prose"))
    dialect = common([])
    scored = []
    for side in (reference, candidate):
        async with serve(side) as endpoint:
            scored.append(await score_all(endpoint, dialect, text.documents))
    return fidelity(candidate, reference, text, compare(text.documents, *scored), dialect)


def test_a_worker_against_itself_is_exact_to_rounding(recipe: Recipe) -> None:
    found = asyncio.run(through_workers(Side("reference", recipe), Side("candidate", recipe)))
    assert found.kl is not None
    assert found.top1 is not None
    assert found.kl.max < 1e-6
    assert found.top1.mean == 1


def test_it_agrees_with_the_whole_vocabulary_and_bounds_it_from_below(recipe: Recipe) -> None:
    nf4 = recipe.replace({"quantization.scheme": "bnb-nf4", "dtype": "fp32"})
    kept = texts.add("prose.txt", (PROSE * 2).encode())
    plan = make_plan(nf4, detect(), text_sha256=kept.sha256)
    whole = judge(plan, lambda *_: None, threading.Event()).fidelity
    part = asyncio.run(through_workers(Side("reference", plan.reference), Side("candidate", nf4)))
    assert whole.kl is not None
    assert part.kl is not None
    assert part.tokens == whole.tokens
    assert whole.perplexity is not None
    assert part.perplexity is not None
    assert part.perplexity.mean == pytest.approx(whole.perplexity.mean, rel=1e-3)
    assert part.top1 is not None
    assert whole.top1 is not None
    assert part.top1.mean == pytest.approx(whole.top1.mean, abs=0.01)
    assert part.rms_dp is not None
    assert whole.rms_dp is not None
    assert part.rms_dp.mean == pytest.approx(whole.rms_dp.mean, rel=1e-2)
    # Twenty of 300 tokens of a flat random model: much lies outside, so the bound is loose but never above.
    assert 0 < part.kl.mean <= whole.kl.mean * (1 + 1e-3)


def test_the_task_check_answers_as_lm_eval_does(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    items = builtin_items()[:20]
    ours, theirs = asyncio.run(_both(Side("candidate", recipe), items, tmp_path))
    assert list(ours) == theirs


async def _both(side: Side, items: Any, folder: Path) -> tuple[tuple[int, ...], list[int]]:
    async with serve(side) as endpoint:
        ours = await answers(endpoint, items)
        theirs = await asyncio.to_thread(lm_eval, endpoint, items, side.recipe.model.id, folder)
    return ours, theirs


def lm_eval(endpoint: Endpoint, items: Any, tokenizer: str, folder: Path) -> list[int]:
    """Which choice lm-eval's local-completions finds likeliest, item by item."""
    data, task = folder / "items.jsonl", folder / "mcp_items.yaml"
    data.write_text("\n".join(item.model_dump_json() for item in items) + "\n")
    task.write_text(
        f"task: mcp_items\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{context}}'\ndoc_to_choice: '{{choices}}'\n"
        "doc_to_target: '{{answer}}'\nmetric_list:\n  - metric: acc\n"
    )
    arguments = f"model={endpoint.model},base_url={endpoint.client.url}/v1/completions,tokenizer={tokenizer}"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "lm_eval",
            "run",
            "--model",
            "local-completions",
            "--model_args",
            arguments,
            "--tasks",
            "mcp_items",
            "--include_path",
            str(folder),
            "--log_samples",
            "--output_path",
            str(folder),
        ],
        check=True,
        capture_output=True,
    )
    (samples,) = folder.rglob("samples_mcp_items*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    rows.sort(key=lambda row: row["doc_id"])
    likelihoods = [[float(reply[0]) for reply in row["filtered_resps"]] for row in rows]
    return [each.index(max(each)) for each in likelihoods]
