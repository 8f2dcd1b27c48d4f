"""On an NVIDIA device every way to make decode steps ahead gives the model's own tokens, and joined weights too."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from mcp_core.generation import GenerationRequest, Sampling
from mcp_core.inference.engine import Engine
from mcp_core.inference.joined_projections import join_projections
from mcp_core.models import catalog, loader
from mcp_core.recipe import Recipe
from tests.inference.conftest import Recorder
from tests.inference.test_engine import greedy

pytestmark = pytest.mark.gpu

SHAPE = {"layers": 3, "hidden": 512, "intermediate": 1024, "heads": 8, "kv_heads": 4, "vocab": 2000}
BASE = {
    "model": {"source": "shape", "id": "custom", "shape": SHAPE},
    "device": "cuda:0",
    "threads": 1,
    "kv": {"max_context": 512},
}
MODES = {
    "off": {},
    "recorded": {"compile": "graphs"},
    "compiled": {"compile": "compiled"},
    "continuous": {"batching.mode": "continuous"},
    "continuous, recorded": {"batching.mode": "continuous", "batching.max_requests": 16, "compile": "graphs"},
    "continuous, compiled": {"batching.mode": "continuous", "batching.max_requests": 16, "compile": "compiled"},
    "small pool": {"batching.mode": "continuous", "batching.kv_blocks": 24, "batching.step_tokens": 64},
    "prefix cache": {"batching.mode": "continuous", "prefix_cache": True},
}


def load(changes=None):
    recipe = Recipe.from_dict(BASE).replace({"dtype": "fp32"} | (changes or {}))
    return loader.load(catalog.resolve(recipe.model), recipe, lambda *_: None), recipe


def prompts_of(count: int) -> list[tuple[int, ...]]:
    draw = random.Random(7)
    return [tuple(draw.randrange(5, 2000) for _ in range(draw.randrange(1, 200))) for _ in range(count)]


@pytest.fixture(scope="module")
def reference():
    loaded, _ = load()
    prompts = prompts_of(12)
    return prompts, [greedy(loaded.model, prompt, 24) for prompt in prompts]


def assert_own_tokens(engine, recorder, reference):
    """All prompts at once, each answered with generate's tokens."""
    prompts, expected = reference
    for index, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(str(index), prompt, 24, Sampling(temperature=0), ignore_eos=True))
    for index in range(len(prompts)):
        recorder.wait_end(str(index))
        assert recorder.tokens(str(index)) == expected[index]


@pytest.mark.filterwarnings("default")  # torch.compile's own use of what torch deprecates
@pytest.mark.parametrize("changes", MODES.values(), ids=MODES)
def test_every_mode_gives_generate_s_tokens(reference, changes):
    loaded, recipe = load()
    recorder = Recorder()
    engine = Engine(loaded, recipe.replace({"batching.max_requests": 64} | changes), recorder)
    engine.warm_up()
    engine.start()
    try:
        assert_own_tokens(engine, recorder, reference)
    finally:
        engine.close()


def test_sampled_and_stopped_requests_run_ahead_like_greedy_ones(reference):
    prompts, expected = reference
    loaded, recipe = load()
    recorder = Recorder()
    changes = {"batching.mode": "continuous", "compile": "graphs", "batching.max_requests": 64}
    engine = Engine(replace(loaded, eos_ids=frozenset({expected[0][9]})), recipe.replace(changes), recorder)
    engine.start()
    try:
        for seed in (1, 2):
            sampling = Sampling(temperature=0.8, top_k=50, top_p=0.9, seed=5)
            engine.submit(GenerationRequest(f"seeded {seed}", prompts[1], 24, sampling, ignore_eos=True))
        engine.submit(GenerationRequest("stops", prompts[0], 24, Sampling(temperature=0)))
        engine.submit(GenerationRequest("probs", prompts[2], 24, Sampling(temperature=0), 24, True, logprobs=2))
        for name in ("seeded 1", "seeded 2", "stops", "probs"):
            recorder.wait_end(name)
        assert recorder.tokens("seeded 1") == recorder.tokens("seeded 2")
        assert recorder.tokens("stops") == expected[0][: expected[0].index(expected[0][9]) + 1]
        assert recorder.tokens("probs") == expected[2]
    finally:
        engine.close()


def test_steps_of_more_are_recorded_live_and_change_no_token(reference):
    prompts, expected = reference
    loaded, recipe = load()
    recorder = Recorder()
    changes = {"batching.mode": "continuous", "compile": "graphs", "batching.max_requests": 2}
    engine = Engine(loaded, recipe.replace(changes), recorder)
    engine.start()
    try:
        running = GenerationRequest("running", prompts[0], 200, Sampling(temperature=0), ignore_eos=True)
        engine.submit(running)
        recorder.wait(lambda: len(recorder.of("running")) >= 2)
        engine.apply_live(recipe.replace(changes | {"batching.max_requests": 13}))
        assert_own_tokens(engine, recorder, reference)
        recorder.wait_end("running")
        assert recorder.tokens("running")[:24] == expected[0]
    finally:
        engine.close()


def test_what_the_preempted_had_comes_back_from_the_host(reference):
    prompts, expected = reference
    loaded, recipe = load()
    recorder = Recorder()
    engine = Engine(loaded, recipe.replace(MODES["small pool"]), recorder)
    engine._mode._host._computing.add(1, 1.0)  # so that copying pays on any device
    engine.start()
    try:
        for index, prompt in enumerate(prompts):
            engine.submit(GenerationRequest(str(index), prompt, 100, Sampling(temperature=0), ignore_eos=True))
        for index in range(len(prompts)):
            recorder.wait_end(str(index))
            assert recorder.tokens(str(index))[:24] == expected[index]
        assert engine.stats().kv_host_returned_total > 0
        assert engine.stats().kv_host_bytes == 0
    finally:
        engine.close()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_fp8_pages_are_attended_to(dtype):
    loaded, recipe = load({"dtype": dtype, "kv.kind": "quantized-fp8"})
    recorder = Recorder()
    engine = Engine(loaded, recipe.replace({"batching.mode": "continuous"}), recorder)
    engine.warm_up()  # compares with the cache of one sequence
    assert "from fp8" in engine.kernel_name
    engine.start()
    try:
        for index, prompt in enumerate(prompts_of(12)):
            engine.submit(GenerationRequest(str(index), prompt, 24, Sampling(temperature=0), ignore_eos=True))
        assert {recorder.wait_end(str(index)).finish for index in range(12)} == {"length"}
    finally:
        engine.close()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize("compiled", ["off", "graphs"])
def test_the_second_device_serves_alone(reference, compiled):
    loaded, recipe = load({"device": "cuda:1"})
    recorder = Recorder()
    engine = Engine(loaded, recipe.replace({"batching.mode": "continuous", "compile": compiled}), recorder)
    engine.warm_up()
    engine.start()
    try:
        assert_own_tokens(engine, recorder, reference)
    finally:
        engine.close()
        torch.cuda.set_device(0)


@pytest.mark.parametrize("scheme", ["none", "torchao-int8-weight-only", "torchao-int4-weight-only"])
def test_joined_weights_compute_what_they_did_apart(scheme):
    loaded, _ = load({"dtype": "bf16", "quantization.scheme": scheme})
    ids = torch.tensor([prompts_of(1)[0]], device="cuda")
    with torch.inference_mode():
        apart = loaded.model(ids).logits.float()
        assert join_projections(loaded.model) == 9
        together = loaded.model(ids).logits.float()
    assert (together - apart).abs().max() / apart.abs().max() < 0.03
