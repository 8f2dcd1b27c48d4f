"""On an NVIDIA device a recorded step with prompts gives what the step itself does, and short ones take one."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mcp_core.generation import GenerationRequest, Sampling
from mcp_core.inference.engine import Engine
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.runner import PagedRunner
from mcp_core.inference.paged.scheduler import Scheduler
from tests.gpu.test_engine import load
from tests.inference.conftest import Recorder

pytestmark = pytest.mark.gpu

PAGES, PAGE, WIDTH = 60, 16, 32
CONTINUOUS = {"batching.mode": "continuous", "batching.max_requests": 4, "prefix_cache": True}


def prompt_of(length: int, first: int = 0) -> tuple[int, ...]:
    return tuple(5 + (first + 31 * index) % 1900 for index in range(length))


@pytest.fixture(scope="module")
def model():
    return load({"dtype": "bf16"})[0].model


@pytest.fixture
def runner(model):
    made = PagedRunner(model, PAGES, PAGE)
    yield made
    made.close()


def logits_of(runner, chunks, first):
    """Each step's logits of one prompt computed in ``chunks``, and those of four tokens after it."""
    scheduler = Scheduler(PagePool(PAGES, PAGE), 512, 2)
    scheduler.add(GenerationRequest("r", prompt_of(sum(chunks), first), 4))
    found = []
    for count in (*chunks, 1, 1, 1):
        scheduler.step_tokens = count
        (part,) = scheduler.plan()
        assert part.count == count
        found.append(runner.run([part]).logits.float().cpu())
        whole = part.complete
        scheduler.done(part)
        if whole:
            part.sequence.choose(0)
            scheduler.read(part.sequence, 7)  # the same token for all: they are compared
    return torch.cat(found)


def assert_close(found, expected):
    """Another number of rows is another kernel of the products, and both round to 8 bits: on a CPU logits of this
    model in bf16 are 1 % of their spread from those in fp32, at most 6 %. With positions, lengths or rows planted
    wrong they are 5 to 49 % apart."""
    apart = (found - expected).abs() / expected.std()
    assert apart.mean() < 0.02, apart.mean(1)
    assert apart.max() < 0.2, apart.amax(1)


CASES = {
    "fresh": [20],
    "as many as are recorded": [64],
    "many": [256],
    "a third of it padding": [300],
    "in chunks": [30, 5, 16, 200],
    "up to the context's end": [250, 250, 8],
}
SIZES = {
    20: 32,
    64: 64,
    256: 256,
    30: 32,
    5: 16,
    16: 16,
    200: 256,
    250: 256,
    8: 16,
    300: 384,
}  # of each count in these


@pytest.mark.parametrize("kind", ["graphs", "compiled"])
@pytest.mark.filterwarnings("default")  # torch.compile's own use of what torch deprecates
def test_recorded_steps_give_the_logits_of_unrecorded_ones(runner, kind):
    plain = {(name, first): logits_of(runner, chunks, first) for name, chunks in CASES.items() for first in (0, 9)}
    said, used = [], []
    runner.prepare(kind, 1, 512, WIDTH, lambda _part, text: said.append(text))
    assert "Recording prefill steps: size 7 of 7." in said
    run = runner._alone.run
    runner._alone.run = lambda parts, size: used.append((parts[0].count, size)) or run(parts, size)
    for (name, first), expected in plain.items():
        recorded = logits_of(runner, CASES[name], first)
        assert_close(recorded, expected)
    assert dict(used) == SIZES


@pytest.mark.parametrize("mode", [CONTINUOUS, {"batching.mode": "off", "prefix_cache": True}], ids=["many", "one"])
def test_forty_tokens_after_a_known_prefix_take_one_recorded_step(mode):
    loaded, recipe = load({"dtype": "bf16"})
    recorder, used = Recorder(), []
    engine = Engine(loaded, recipe.replace(mode | {"compile": "graphs"}), recorder)
    engine.warm_up()
    alone = engine._mode._runner._alone
    run = alone.run
    alone.run = lambda parts, size: (
        used.append((parts[0].sequence.computed, parts[0].count, size)) or run(parts, size)
    )
    engine.start()
    try:
        for name, rest in (("first", 1), ("second", 2)):
            prompt = prompt_of(320) + prompt_of(40, rest)
            engine.submit(GenerationRequest(name, prompt, 8, Sampling(temperature=0), ignore_eos=True))
            assert recorder.wait_end(name).finish == "length"
        assert used == [(0, 360, 384), (320, 40, 64)]
    finally:
        engine.close()


@pytest.mark.parametrize(("dtype", "fp8"), [("fp32", False), ("bf16", True)], ids=["fp32", "fp8 pages"])
def test_steps_that_are_not_recorded_are_left_as_they_are(dtype, fp8):
    runner = PagedRunner(load({"dtype": dtype})[0].model, PAGES, PAGE, fp8=fp8)
    runner.prepare("graphs", 2, 64, WIDTH, lambda *_: None)
    assert runner._decode is not None
    assert runner._alone is runner._beside is None
    runner.close()


def has_flash3():
    return importlib.util.find_spec("flash_attn_interface") is not None


KERNELS = ["sdpa", pytest.param("flash_attention_3", marks=pytest.mark.skipif("not has_flash3()"))]


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("most", [4, 64])
def test_prompts_beside_decoding_take_one_recorded_step(model, monkeypatch, attention, most):
    found = []
    for kind in (None, "graphs"):
        runner = PagedRunner(model, PAGES, PAGE, attention)
        if kind is not None:
            runner.prepare(kind, most, 256, WIDTH, lambda *_: None)
        monkeypatch.setattr(runner, "_forward", runner._forward if kind is None else not_asked)
        found.append(torch.cat([mixed_logits(runner, prompt) for prompt in (40, 190, 3)]))
        runner.close()
    assert_close(*reversed(found))


def test_closing_gives_the_pool_and_the_recorded_steps_back(model):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    runner = PagedRunner(model, 8000, PAGE)  # 0.4 GB
    runner.prepare("graphs", 4, 256, WIDTH, lambda *_: None)
    assert torch.cuda.memory_reserved() > before + 0.3e9
    decode = runner._decode, runner._beside  # functions of their own keep them alive until garbage is collected
    runner.close()
    assert torch.cuda.memory_reserved() < before + 0.1e9
    assert None not in decode


def not_asked(_step):
    raise AssertionError("a step was computed that is recorded")


def mixed_logits(runner, tokens):
    """Two sequences decoding, a whole short prompt and so many tokens of a long one, in one step."""
    scheduler = Scheduler(PagePool(PAGES, PAGE), 512, 6)
    for name, length in (("a", 3), ("b", 50)):
        scheduler.add(GenerationRequest(name, prompt_of(length), 20))
        (part,) = [part for part in scheduler.plan() if part.sequence.request.id == name]
        runner.run([part])
        scheduler.done(part)
        part.sequence.choose(0)
        scheduler.read(part.sequence, 7)
    scheduler.add(GenerationRequest("c", prompt_of(17, 300), 20))
    scheduler.add(GenerationRequest("d", prompt_of(200, 700), 20))
    scheduler.step_tokens = 2 + 17 + tokens
    parts = scheduler.plan()
    assert [part.count for part in parts] == [1, 1, 17, tokens]
    return runner.run(parts).logits.float().cpu()
