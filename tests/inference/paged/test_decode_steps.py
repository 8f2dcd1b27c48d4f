"""Decode steps made ahead compute what the model computes: padded, with tokens left on the device, compiled."""

from __future__ import annotations

import copy

import pytest
import torch

from mcp_core.errors import RecipeError
from mcp_core.generation import GenerationRequest
from mcp_core.inference.paged.batch import decode_rows
from mcp_core.inference.paged.decode_steps import DecodeSteps
from mcp_core.inference.paged.graphs import Graphs
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.runner import PagedRunner
from mcp_core.inference.paged.scheduler import Scheduler
from mcp_core.models.activation_memory import graph_sizes
from tests.inference.test_engine import greedy

PAGE, WIDTH = 16, 8


@pytest.fixture
def runner(model):
    made = PagedRunner(model, 40, PAGE)
    yield made
    made.close()


def prefilled(runner, prompts):
    """A scheduler whose prompts are computed, each with its first token chosen; the first token is known."""
    scheduler = Scheduler(PagePool(40, PAGE), 512, 6)
    for index, prompt in enumerate(prompts):
        scheduler.add(GenerationRequest(str(index), prompt, 20))
    parts = scheduler.plan()
    best = runner.run(parts).best
    runner.keep(best)
    for row, part in enumerate(parts):
        scheduler.done(part)
        part.sequence.choose(row)
    return scheduler, best


PROMPTS = [(5, 6, 7), tuple(range(10, 60)), (9,) * 17]


def test_sizes_grow_by_a_third_at_most_and_end_with_the_most() -> None:
    assert graph_sizes(1) == (1,)
    assert graph_sizes(20) == (1, 2, 4, 8, 12, 16, 20)
    assert graph_sizes(256)[-2:] == (224, 256)


@pytest.mark.parametrize("known", [True, False], ids=["tokens known", "tokens left on the device"])
def test_a_padded_step_computes_what_an_eager_one_does(runner, known):
    scheduler, best = prefilled(runner, PROMPTS)
    sequences = scheduler._running
    if known:
        for sequence, token in zip(sequences, best.tolist(), strict=True):
            scheduler.read(sequence, token)
    parts = scheduler.plan() if known else scheduler.plan_ahead()
    assert [part.count for part in parts] == [1, 1, 1]
    eager = runner.run(parts)
    decode = DecodeSteps(runner._forward, "graphs", WIDTH, PAGE, runner._chosen, Graphs())
    runner.keep(best)
    rows = torch.from_numpy(decode_rows(parts, PAGE, 6, WIDTH))
    with torch.inference_mode(), runner._attention():
        padded = decode.run(rows, 3)
    torch.testing.assert_close(padded.logits, eager.logits, atol=1e-5, rtol=1e-4)
    assert padded.best.tolist() == eager.best.tolist()
    assert runner._chosen[:3].tolist() == eager.best.tolist()


class RunAtOnce(Graphs):
    """Computes where a device would record, as recording does, too."""

    def record(self, compute):
        compute()
        return compute


def test_steps_that_are_recorded_later_leave_alone_what_the_last_step_kept(runner):
    """The token of the last step has its place; the one chosen by it must not be kept there too."""
    scheduler, best = prefilled(runner, PROMPTS)
    decode = DecodeSteps(runner._forward, "graphs", WIDTH, PAGE, runner._chosen, RunAtOnce())
    decode._records = True
    with torch.inference_mode(), runner._attention():
        decode.prepare(4, lambda _part, _text: None)
        runner.keep(best)
        parts = scheduler.plan_ahead()
        decode._rows[:4].copy_(torch.from_numpy(decode_rows(parts, PAGE, 4, WIDTH)))
        decode._recordings[4]()
        kept = [tensor[1:].clone() for tensor in runner.cache.tensors]  # page 0 takes padding
        decode.prepare(6, lambda _part, _text: None)
    for tensor, before in zip(runner.cache.tensors, kept, strict=True):
        assert torch.equal(tensor[1:], before)


def test_a_step_of_too_many_is_computed_eagerly(runner):
    decode = DecodeSteps(runner._forward, "graphs", WIDTH, PAGE, runner._chosen, Graphs())
    assert decode.size_for(1) is None
    decode.prepare(6, lambda _part, _text: None)
    assert decode.size_for(6) == 6
    assert decode.size_for(7) is None
    decode._records = True
    assert [decode.size_for(count) for count in (1, 3, 5)] == [1, 4, 6]


def test_what_torch_cannot_compile_is_refused_with_what_to_do(runner):
    def breaks(step):
        torch._dynamo.graph_break()
        return step.tokens.float()

    decode = DecodeSteps(breaks, "compiled", WIDTH, PAGE, runner._chosen, Graphs())
    with pytest.raises(RecipeError, match="cannot compile"):
        decode.prepare(1, lambda _part, _text: None)


class Recorder(DecodeSteps):
    """As on a CUDA device, whose graphs are noted and not recorded."""

    def __init__(self, runner):
        super().__init__(runner._forward, "graphs", WIDTH, PAGE, runner._chosen, Graphs())
        self._records, self.recorded, self.fails_at = True, [], None

    def _recorded(self, size):
        if size == self.fails_at:
            raise torch.OutOfMemoryError
        self.recorded.append(size)
        return


def test_only_missing_sizes_are_recorded_and_what_fails_leaves_those_there_were(runner):
    decode, said = Recorder(runner), []
    rows = decode._rows.data_ptr()
    decode.prepare(2, lambda *part: said.append(part))
    assert decode.recorded == [2, 1]
    decode.fails_at = 4
    with pytest.raises(torch.OutOfMemoryError):
        decode.prepare(10, lambda *part: said.append(part))
    assert (sorted(decode._recordings), decode.size_for(2), decode.size_for(3)) == ([1, 2], 2, None)
    decode.fails_at, decode.recorded = None, []
    decode.prepare(10, lambda *part: said.append(part))
    assert decode.recorded == [10, 8, 4]
    assert sorted(decode._recordings) == [1, 2, 4, 8, 10]
    assert [decode.size_for(count) for count in (3, 9, 11)] == [4, 10, None]
    decode.prepare(5, lambda *part: said.append(part))  # fewer: all are there
    assert decode.recorded == [10, 8, 4]
    assert decode._rows.data_ptr() == rows  # recorded graphs read them where they are
    assert said[-1][1] == "Recording decode steps: size 3 of 3."


def test_a_step_of_many_is_compiled_once_they_may_be_many(runner, monkeypatch):
    decode, compiled = DecodeSteps(runner._forward, "graphs", WIDTH, PAGE, runner._chosen, Graphs()), []
    decode._one, decode._many = "one", "many"
    monkeypatch.setattr(decode, "_compile", lambda compute, rows: compiled.append((compute, len(rows))))
    for most in (1, 4, 8):
        decode.prepare(most, lambda _part, _text: None)
    assert compiled == [("one", 1), ("many", 2)]


@pytest.mark.slow  # about a minute of compiling
@pytest.mark.filterwarnings("default")  # torch.compile's own use of what torch deprecates
def test_compiled_steps_give_generate_s_tokens_and_are_found_again(
    model, make_engine, recorder, request_of, prompt, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    prompts = [prompt, prompt[:7], prompt * 2]
    expected = [greedy(model, each, 24) for each in prompts]
    continuous = {"batching.mode": "continuous", "batching.max_requests": 4, "compile": "compiled"}
    kept = []
    for changes in ({"compile": "compiled"}, continuous, continuous | {"ahead": True}):
        torch._dynamo.reset()
        engine = make_engine(changes, model=copy.deepcopy(model))  # its projections are joined
        kept.append(engine._mode.preparation.kept)
        recorder.events.clear()
        for index, each in enumerate(prompts):
            engine.submit(request_of(str(index), prompt=each))
        for index in range(len(prompts)):
            recorder.wait_end(str(index))
            assert recorder.tokens(str(index)) == expected[index]
        assert "compiled steps" in engine.mode_name
        engine.close()
        engine._mode.close()
    assert kept == [False, False, True]
