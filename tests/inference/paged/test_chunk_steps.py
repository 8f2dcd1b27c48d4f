"""A padded prefill step computes what the step itself does, and leaves the same keys and values behind."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from mcp_core.generation import GenerationRequest
from mcp_core.inference.paged.batch import CHUNK_FIELDS, chunk_row
from mcp_core.inference.paged.chunk_steps import ChunkSteps, chunk_sizes
from mcp_core.inference.paged.decode_steps import DecodeSteps
from mcp_core.inference.paged.graphs import Graphs, Recorded
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.runner import PagedRunner
from mcp_core.inference.paged.scheduler import Part, Scheduler
from tests.inference.conftest import CONTEXT
from tests.inference.test_engine import greedy

PAGE, WIDTH, PAGES = 16, CONTEXT // 16, 40


class Unrecorded(Graphs):
    """As on a CUDA device, where what is recorded is computed as it is; a step not recorded takes ``eager_s``."""

    def __init__(self, eager_s=1.0):
        super().__init__()
        self.eager_s = eager_s

    def record(self, compute):
        return Recorded(compute, replay_s=0.01, eager_s=self.eager_s)


def made_ahead(runner):
    chunks = ChunkSteps(runner._forward, WIDTH, PAGE, torch.device("cpu"), Unrecorded())
    chunks.prepare(CONTEXT, lambda *_: None)
    return chunks


class Course:
    """One sequence in a pool of its own, step by step: by steps made ahead, or as they come."""

    def __init__(self, model, *, made=False):
        self.runner = PagedRunner(model, PAGES, PAGE)
        self.scheduler = Scheduler(PagePool(PAGES, PAGE), 512, 2)
        if made:
            self.runner._chunks = made_ahead(self.runner)

    def begin(self, prompt):
        self.scheduler.add(GenerationRequest("r", prompt, 8))

    def step(self, tokens=512):
        """The logits of its next step, of so many tokens at most; its next token is chosen where it is whole."""
        self.scheduler.step_tokens = tokens
        (part,) = self.scheduler.plan()
        logits, best = self.runner.run([part])
        whole = part.complete
        self.scheduler.done(part)
        if whole:
            part.sequence.choose(0)
            self.scheduler.read(part.sequence, int(best[0]))
        return logits.clone()

    @property
    def kept(self):
        """Keys and values of its tokens, layer after layer."""
        (sequence,) = self.scheduler._running
        at = [sequence.slot(position, PAGE) for position in range(sequence.computed)]
        return torch.stack([tensor.flatten(0, 1)[at] for tensor in self.runner.cache.tensors])


@pytest.fixture(scope="module")
def exact(model):
    """In fp32 two runs of one step differ by 3e-5 in places, by where its tensors happen to lie in memory."""
    return copy.deepcopy(model).double()


@pytest.fixture
def courses(exact):
    both = Course(exact), Course(exact, made=True)
    yield both
    for course in both:
        course.runner.close()


def assert_same(courses, tokens=512):
    """The next step of both."""
    plain, padded = (course.step(tokens) for course in courses)
    torch.testing.assert_close(padded, plain, atol=1e-6, rtol=0)
    assert padded.argmax() == plain.argmax()
    torch.testing.assert_close(courses[1].kept, courses[0].kept, atol=1e-6, rtol=0)


def prompt_of(length):
    return tuple(3 + 7 * index % 300 for index in range(length))


CASES = {
    "two tokens": [2],
    "a fresh prompt": [20],
    "as many as are recorded": [32],
    "one more": [33],
    "more than a quarter of a thousand": [257],
    "nearly all of the context": [500],
    "in chunks, over page borders": [30, 5, 16, 23],
    "in chunks of whole pages": [64, 64, 20],
    "up to the context's end": [250, 250, 4],
}


@pytest.mark.parametrize("chunks", CASES.values(), ids=CASES)
def test_a_padded_step_and_all_after_it_are_as_if_it_were_not(courses, chunks):
    for course in courses:
        course.begin(prompt_of(sum(chunks)))
    for count in chunks:
        assert_same(courses, count)
    for _ in range(7):
        assert_same(courses)


def test_what_others_left_in_pages_does_not_spread(courses):
    for course in courses:
        for tensor in course.runner.cache.tensors:
            tensor.fill_(torch.nan)
        course.begin(prompt_of(20))
    for _ in range(5):
        assert_same(courses)


@pytest.mark.parametrize("ahead", [False, True], ids=["read at once", "read later"])
def test_a_short_rest_after_a_known_prefix_takes_one_of_them_and_gives_generate_s_tokens(
    model, make_engine, recorder, request_of, ahead
):
    engine = make_engine({"batching.mode": "continuous", "prefix_cache": True, "ahead": ahead}, start=False)
    runner, used = engine._mode._runner, []
    runner._chunks = made_ahead(runner)
    run = runner._chunks.run
    runner._chunks.run = lambda part, size: used.append((part.count, size)) or run(part, size)
    engine.start()
    for name, rest in (("first", (4, 5) * 20), ("second", (6, 7) * 20)):
        prompt = prompt_of(320) + rest
        engine.submit(request_of(name, prompt=prompt))
        recorder.wait_end(name)
        assert recorder.tokens(name) == greedy(model, prompt, 24)
    assert used == [(360, 384), (40, 64)]


PROMPTS = [(5, 6, 7), tuple(range(10, 60)), (9,) * 17]


def beside_decoding(runner):
    """Two sequences that decode and, in the same step, two prompts of which one is whole."""
    scheduler = Scheduler(PagePool(PAGES, PAGE), 512, 6)
    for index, prompt in enumerate(PROMPTS[:2]):
        scheduler.add(GenerationRequest(str(index), prompt, 20))
    first = scheduler.plan()
    best = runner.run(first).best.tolist()
    for row, part in enumerate(first):
        scheduler.done(part)
        part.sequence.choose(row)
        scheduler.read(part.sequence, best[row])
    scheduler.add(GenerationRequest("2", PROMPTS[2], 20))
    scheduler.add(GenerationRequest("3", prompt_of(200), 20))
    scheduler.step_tokens = 2 + 17 + 40
    return scheduler.plan()


@pytest.mark.parametrize(("eager_s", "made"), [(1.0, [2, 17, 40]), (0.02, [])], ids=["pays", "takes longer"])
def test_prompts_beside_decoding_take_a_step_each_where_that_is_faster(exact, eager_s, made):
    def parts_of(runner):
        parts = beside_decoding(runner)
        assert [part.count for part in parts] == [1, 1, 17, 40]
        return parts

    plain, runner, used = PagedRunner(exact, PAGES, PAGE), PagedRunner(exact, PAGES, PAGE), []
    expected = plain.run(parts_of(plain))
    parts = parts_of(runner)
    graphs = Unrecorded(eager_s)
    runner._chunks = ChunkSteps(runner._forward, WIDTH, PAGE, torch.device("cpu"), graphs)
    runner._chunks.prepare(64, lambda *_: None)
    runner._decode = DecodeSteps(runner._forward, "graphs", WIDTH, PAGE, runner._chosen, graphs)
    runner._decode._records = True
    with torch.inference_mode(), runner._attention():
        runner._decode.prepare(4, lambda *_: None)
    chunk, decode = runner._chunks.run, runner._decode.run
    runner._chunks.run = lambda part, size: used.append(part.count) or chunk(part, size)
    runner._decode.run = lambda rows, count: used.append(count) or decode(rows, count)
    found = runner.run(parts)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=0)
    assert found.best.tolist() == expected.best.tolist()
    assert used == made
    for each in (plain, runner):
        each.close()


def test_a_row_tells_places_of_its_own_and_positions_that_there_are():
    pool = PagePool(PAGES, PAGE)
    scheduler = Scheduler(pool, 500, 1)
    scheduler.add(GenerationRequest("r", prompt_of(CONTEXT - 1), 1))
    scheduler.done(scheduler.plan()[0])
    (part,) = scheduler.plan()
    assert part == Part(part.sequence, 11)
    row = chunk_row(part, PAGE, 16, WIDTH + 1)
    pages, fields, rest = np.split(row, [WIDTH + 1, WIDTH + 1 + len(CHUNK_FIELDS)])
    tokens, positions, slots = rest.reshape(3, 16).tolist()
    assert row.dtype == np.int32
    assert pages.tolist() == [*part.sequence.pages, 0]
    assert fields.tolist() == [516, 10]
    assert tokens == [*part.sequence.tokens[500:], 0, 0, 0, 0, 0]
    assert positions == [*range(500, 511), 510, 510, 510, 510, 510]
    last = part.sequence.pages[-1] * PAGE
    assert slots == [*range(last + 4, last + 16), 0, 1, 2, 3]


def test_sizes_are_few_and_end_with_what_a_step_may_have():
    assert chunk_sizes(16) == (16,)
    assert chunk_sizes(100) == (16, 32, 64, 100)
    assert chunk_sizes(8192) == (16, 32, 64, 128, 256, 384, 512, 768, 1024)


def test_they_are_recorded_once_the_largest_first_and_what_fails_leaves_none(model):
    runner, said, rows = PagedRunner(model, PAGES, PAGE), [], []

    class Noting(Graphs):
        fails = True

        def record(self, compute):
            if self.fails and len(rows) == 2:
                raise torch.OutOfMemoryError
            with torch.inference_mode(), runner._attention():
                rows.append(chunks._row.clone())
                return Recorded(compute, compute().logits.shape[0], 0.0)

    graphs = Noting()
    chunks = ChunkSteps(runner._forward, WIDTH, PAGE, torch.device("cpu"), graphs)
    with pytest.raises(torch.OutOfMemoryError):
        chunks.prepare(100, lambda *part: said.append(part))
    assert chunks.size_for(2) is None
    graphs.fails = False
    rows.clear()
    for _ in range(2):
        chunks.prepare(100, lambda *part: said.append(part))
    assert [int(row[chunks._width]) for row in rows] == [100, 64, 32, 16]
    assert [chunks.size_for(count) for count in (1, 2, 16, 17, 101)] == [None, 16, 16, 32, None]
    assert said[-1] == (pytest.approx(0.975), "Recording prefill steps: size 4 of 4.")
    assert {recorded.replay_s for recorded in chunks._steps.values()} == {1}
    runner.close()


def test_a_cpu_records_none(model):
    runner = PagedRunner(model, PAGES, PAGE)
    runner.prepare("graphs", 2, 64, WIDTH, lambda *_: None)
    assert runner._chunks is None
    runner.close()


def test_lengths_lie_where_a_kernel_finds_them_in_any_step(model):
    """At a multiple of 16 bytes, whatever the longest sequence; a tensor of its own lies so, too."""
    runner, seen = PagedRunner(model, PAGES, PAGE), []

    def forward(step):
        seen.append(step.batch.lengths.data_ptr() % 16)
        return torch.zeros(1, 4)

    for width in (5, 6, 7, 8):
        chunks = ChunkSteps(forward, width, PAGE, torch.device("cpu"), Unrecorded())
        chunks.prepare(16, lambda *_: None)
        chunks._steps[16].replay()
        assert width <= chunks._width - 1024 // PAGE < width + 4
    assert seen == [0] * 4
    runner.close()
