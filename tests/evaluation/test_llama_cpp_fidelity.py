"""The instrument over llama.cpp itself: a planted change of known size, and the same weights computed by torch."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("xllamacpp")

from mcp_core import conflicts, hardware, texts
from mcp_core.evaluation import fidelity_job
from mcp_core.evaluation.top_k import divergence
from mcp_core.generation import GenerationRequest
from mcp_core.inference.llama_cpp_engine import LlamaCppEngine
from mcp_core.inference.llama_cpp_model import LlamaCppModel, load
from mcp_core.jobs import Job
from mcp_core.models import catalog
from mcp_core.presets import recipe_preset
from mcp_core.recipe import Recipe
from mcp_core.results import Fidelity
from tests.inference.test_llama_cpp_engine import Collector

TEXT = "The ferry left the island a little before seven. def area(width): return width * 2"
# The last norm's weights times this: every logit times this, as at temperature 1 / SHARPER.
SHARPER = 1.3
PROSE = (
    "Anne hoped she had outlived the age of blushing; but the age of emotion she certainly had not. "
    "The sea was rough, and the wind came in from the east with a smell of salt and wood smoke. "
)
Lists = list[Mapping[str, float]]


def loaded(recipe: Recipe) -> LlamaCppModel:
    recipe = conflicts.resolve(recipe.replace({"threads": 1, "kv.max_context": 256}), hardware.detect())
    return load(catalog.resolve(recipe.model), recipe, lambda *_: None)


@pytest.fixture(scope="module")
def base() -> Iterator[LlamaCppModel]:
    model = loaded(recipe_preset("bundled-llama.cpp"))
    yield model
    model.server.close()


@pytest.fixture
def sharper(base: LlamaCppModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LlamaCppModel]:
    """The same file with the one tensor changed."""
    import gguf

    assert base.resolved.gguf_file is not None
    path = tmp_path / "sharper.gguf"
    shutil.copy(base.resolved.gguf_file, path)
    (norm,) = [each for each in gguf.GGUFReader(path).tensors if each.name == "output_norm.weight"]
    weights = np.memmap(path, np.float32, "r+", int(norm.data_offset), (int(norm.n_elements),))
    weights *= SHARPER
    weights.flush()
    monkeypatch.setenv("MCP_MODEL_ROOTS", str(tmp_path))
    model = loaded(recipe_preset("bundled-llama.cpp").replace({"model": {"source": "gguf", "id": str(path)}}))
    yield model
    model.server.close()


def prompt(model: LlamaCppModel) -> tuple[int, ...]:
    return tuple(model.tokenizer.encode(TEXT).ids)


def scored(model: LlamaCppModel, monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], Lists]:
    """Of every token but the first its log-probability and the list, as the worker's route gives them."""
    monkeypatch.setattr(type(model.server), "close", lambda _: None)  # the model outlives its engine
    collector = Collector()
    engine = LlamaCppEngine(model, Recipe(engine="llama.cpp"), collector)
    engine.start()
    engine.submit(GenerationRequest("a", prompt(model), 0, prompt_logprobs=20))
    scores = (collector.of("a")[-1].prompt_logprobs or ())[1:]
    engine.close()
    monkeypatch.undo()
    tops = [{str(token): value for token, value in (*each.top, (each.token, each.logprob))} for each in scores]
    return [each.logprob or 0.0 for each in scores], tops


def whole(model: LlamaCppModel, index: int) -> np.ndarray:
    """The server's own distribution of the token at ``index``, all of it, nothing drawn on purpose; by id."""
    ids = prompt(model)
    body = {"prompt": ids[:index], "n_predict": 1, "n_probs": model.vocab_size, "temperature": 0, "stream": False}
    for each in range(1, index + 1):  # a token a step, as scoring computes them
        asked = body | {"prompt": ids[:each], "n_probs": model.vocab_size if each == index else 1}
        (answer,) = model.server.complete(
            asked | {"samplers": ["temperature"], "cache_prompt": each > 1}
        ).read_all()
    (listed,) = answer["completion_probabilities"]
    found = np.full(model.vocab_size, -np.inf)
    for row in listed["top_logprobs"]:
        found[row["id"]] = row["logprob"]
    return found - math.log(np.exp(found).sum())


def test_a_planted_change_is_found_as_computed_by_hand(base, sharper, monkeypatch) -> None:
    nll, tops = scored(base, monkeypatch)
    again, same = scored(base, monkeypatch)
    assert (nll, [divergence(*pair)[0] for pair in zip(tops, same, strict=True)]) == (again, [0.0] * len(tops))
    sharper_nll, sharper_tops = scored(sharper, monkeypatch)
    for index in (3, 9, len(prompt(base)) - 1):
        p = whole(base, index)
        q = SHARPER * p - math.log(np.exp(SHARPER * p).sum())
        true = prompt(base)[index]
        assert nll[index - 1] == pytest.approx(p[true], abs=0.01)
        assert sharper_nll[index - 1] == pytest.approx(q[true], abs=0.05)
        by_hand = float(np.sum(np.exp(p) * (p - q)))
        found, outside = divergence(tops[index - 1], sharper_tops[index - 1])
        shared = [int(each) for each in tops[index - 1].keys() & sharper_tops[index - 1].keys()]
        rest = math.log((1 - np.exp(p[shared]).sum()) / (1 - np.exp(q[shared]).sum()))
        bound = float(np.sum(np.exp(p[shared]) * (p - q)[shared])) + (1 - np.exp(p[shared]).sum()) * rest
        assert outside == pytest.approx(1 - np.exp(p[shared]).sum(), abs=0.01)
        assert found == pytest.approx(bound, rel=0.1, abs=1e-3)
        assert 0 < found <= by_hand * 1.1
    assert np.mean([divergence(*pair)[0] for pair in zip(tops, sharper_tops, strict=True)]) > 0.01


@pytest.mark.slow
def test_the_same_weights_computed_by_torch_are_near_and_what_is_lost_elsewhere_is_further(tmp_path) -> None:
    """Dequantized and in fp32, they are the very numbers that llama.cpp reads: what is left is its arithmetic, int8
    activations above all."""
    kept = texts.add("prose.txt", (PROSE * 3).encode())

    def judged(recipe: Recipe) -> Fidelity:
        request = {
            "recipe": recipe.replace({"threads": 1, "kv.max_context": 512}).model_dump(mode="json"),
            "text_sha256": kept.sha256,
            "reference_dtype": "fp32",
        }
        return Fidelity.model_validate(asyncio.run(fidelity_job.run(Job(tmp_path, request, {}))).result["fidelity"])

    found = judged(recipe_preset("bundled-llama.cpp"))
    lossy = judged(Recipe(device="cpu").replace({"quantization.scheme": "bnb-nf4"}))
    assert (found.status, found.engine, found.path) == ("measured", "llama.cpp", "endpoint")
    assert found.kl is not None
    assert lossy.kl is not None
    assert found.top1 is not None
    assert found.reference_perplexity is not None
    assert found.perplexity is not None
    assert 0 < found.kl.mean < 0.02
    assert found.kl.mean < lossy.kl.mean / 3
    assert found.top1.mean > 0.93
    assert found.perplexity.mean == pytest.approx(found.reference_perplexity.mean, rel=0.05)
