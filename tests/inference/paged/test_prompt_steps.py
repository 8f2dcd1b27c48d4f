"""A padded step with prompts computes what the step itself does, and leaves the same keys and values behind."""

from __future__ import annotations

import copy

import pytest
import torch

from mcp_core.generation import GenerationRequest
from mcp_core.inference.paged import runner as runner_file
from mcp_core.inference.paged.graphs import Graphs
from mcp_core.inference.paged.pages import PagePool
from mcp_core.inference.paged.prompt_steps import PromptSteps, step_sizes
from mcp_core.inference.paged.runner import PagedRunner
from mcp_core.inference.paged.scheduler import Scheduler
from tests.inference.conftest import CONTEXT
from tests.inference.test_engine import greedy

PAGE, WIDTH, PAGES = 16, CONTEXT // 16, 40


class Unrecorded(Graphs):
    """As on a CUDA device, where what is recorded is computed as it is."""

    def __init__(self):
        super().__init__()
        self.ended = []

    def record(self, compute):
        return compute

    def end(self, replays):
        self.ended += replays


def made_ahead(runner, sequences=1, most=CONTEXT):
    steps = PromptSteps(runner._forward, sequences, WIDTH, PAGE, runner._chosen, Unrecorded())
    steps.prepare(most, lambda *_: None)
    return steps


class Course:
    """One sequence in a pool of its own, step by step: by steps made ahead, or as they come."""

    def __init__(self, model, *, made=False):
        self.runner = PagedRunner(model, PAGES, PAGE)
        self.scheduler = Scheduler(PagePool(PAGES, PAGE), 512, 2)
        if made:
            self.runner._alone = made_ahead(self.runner)

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
    runner._alone = made_ahead(runner)
    run = runner._alone.run
    runner._alone.run = lambda parts, size: used.append((parts[0].count, size)) or run(parts, size)
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


def parts_of(runner):
    parts = beside_decoding(runner)
    assert [part.count for part in parts] == [1, 1, 17, 40]
    return parts


@pytest.mark.parametrize(("sequences", "sizes"), [(4, [64]), (9, [64]), (3, [])], ids=["as many", "more", "fewer"])
def test_prompts_beside_decoding_take_one_step_that_is_made_for_so_many(exact, sequences, sizes):
    plain, runner, used = PagedRunner(exact, PAGES, PAGE), PagedRunner(exact, PAGES, PAGE), []
    expected = plain.run(parts_of(plain))
    parts = parts_of(runner)
    runner._beside = made_ahead(runner, sequences)
    run = runner._beside.run
    runner._beside.run = lambda parts, size: used.append(size) or run(parts, size)
    found = runner.run(parts)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=0)
    assert found.best.tolist() == expected.best.tolist()
    for ours, theirs in zip(runner.cache.tensors, plain.cache.tensors, strict=True):
        torch.testing.assert_close(ours[1:], theirs[1:], atol=1e-6, rtol=0)  # page 0 takes padding
    assert used == sizes
    for each in (plain, runner):
        each.close()


@pytest.mark.parametrize("mode", ["graphs", "off"])
def test_requests_that_come_and_go_get_generate_s_tokens(
    model, make_engine, recorder, request_of, monkeypatch, mode
):
    """Tokens of the step before are still unread where the next is launched."""
    monkeypatch.setattr(runner_file, "Graphs", Unrecorded)
    changes = {"batching.mode": "continuous", "batching.step_tokens": 64, "ahead": True}
    engine = make_engine(changes | {"batching.max_requests": 8}, start=False)
    runner, used = engine._mode._runner, []
    if mode == "graphs":
        runner._alone, runner._beside = made_ahead(runner, 1, 64), made_ahead(runner, 8, 64)
        run = runner._beside.run
        runner._beside.run = lambda parts, size: used.append([part.count for part in parts]) or run(parts, size)
    prompts = {f"r{index}": prompt_of(5 + 37 * index) for index in range(7)}
    for name, prompt in prompts.items():
        engine.submit(request_of(name, prompt=prompt))
    engine.start()
    for name in prompts:
        recorder.wait_end(name)
    for name, prompt in prompts.items():
        assert recorder.tokens(name) == greedy(model, prompt, 24)
    assert any(counts[:2] == [1, 1] and counts[2] > 1 for counts in used) or mode == "off"


def test_what_is_left_of_an_earlier_step_does_not_count(exact):
    """Rows of sequences that there are no more, their pages too."""
    runner, plain = PagedRunner(exact, PAGES, PAGE), PagedRunner(exact, PAGES, PAGE)
    runner._alone = runner._beside = made_ahead(runner, 6)
    found = []
    for each in (runner, plain):
        each.run(parts_of(each))
        scheduler = Scheduler(PagePool(PAGES, PAGE), 512, 2)
        scheduler.add(GenerationRequest("r", prompt_of(41), 8))
        found.append(each.run(scheduler.plan()).logits.clone())
        each.close()
    torch.testing.assert_close(*found, atol=1e-6, rtol=0)


def test_sizes_are_few_and_end_with_what_a_step_may_have():
    assert step_sizes(16) == (16,)
    assert step_sizes(100) == (16, 32, 64, 100)
    assert step_sizes(8192) == (16, 32, 64, 128, 256, 384, 512, 768, 1024)


def test_they_are_recorded_once_the_largest_first_and_what_fails_leaves_none(model):
    runner, said, sizes = PagedRunner(model, PAGES, PAGE), [], []

    class Noting(Unrecorded):
        fails = True

        def record(self, compute):
            if self.fails and len(sizes) == 2:
                raise torch.OutOfMemoryError
            with torch.inference_mode(), runner._attention():
                compute()
            return compute

    def forward(step):
        sizes.append(step.tokens.shape[1])
        assert step.batch.starts.tolist() == [0, *[sizes[-1]] * 3]  # all of them padding
        return runner._forward(step)

    graphs = Noting()
    steps = PromptSteps(forward, 2, WIDTH, PAGE, runner._chosen, graphs)
    with pytest.raises(torch.OutOfMemoryError):
        steps.prepare(100, lambda *part: said.append(part))
    assert steps.size_for(1, 2) is None
    assert len(graphs.ended) == 2
    graphs.fails = False
    sizes.clear()
    for _ in range(2):
        steps.prepare(100, lambda *part: said.append(part))
    assert sizes == [100, 64, 32, 16]
    assert [steps.size_for(2, count) for count in (1, 2, 16, 17, 101)] == [16, 16, 16, 32, None]
    assert steps.size_for(3, 16) is None
    assert said[-1] == (pytest.approx(0.75), "Recording steps of prompts beside others: size 4 of 4.")
    runner.close()


def test_where_more_may_run_they_are_recorded_for_more_and_those_of_one_are_kept(model, monkeypatch):
    monkeypatch.setattr(runner_file, "Graphs", Unrecorded)
    runner = PagedRunner(model, PAGES, PAGE)
    runner._records_prompts, most = True, []
    for count in (1, 4, 2, 6):
        runner.prepare("graphs", count, 64, WIDTH, lambda *_: None)
        most.append((id(runner._alone), runner._beside.sequences if runner._beside else None))
    assert len({alone for alone, _ in most}) == 1
    assert [beside for _, beside in most] == [None, 4, 4, 6]
    assert len(runner._graphs.ended) == 3  # 16, 32 and 64 tokens of four
    runner.close()


def test_a_cpu_records_none(model):
    runner = PagedRunner(model, PAGES, PAGE)
    runner.prepare("graphs", 2, 64, WIDTH, lambda *_: None)
    assert runner._alone is runner._beside is None
    runner.close()
