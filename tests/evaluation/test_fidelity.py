"""Judging on a tiny checkpoint: beside each other and in turns, floors, replies, KV kinds, what goes wrong."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from mcp_core import hardware, texts
from mcp_core.errors import Cancelled, ContextTooLong, InputError, OutOfMemory
from mcp_core.evaluation import fidelity as module
from mcp_core.evaluation import fidelity_passages, fidelity_text
from mcp_core.evaluation.fidelity import judge
from mcp_core.evaluation.fidelity_plan import make_plan
from mcp_core.recipe import Recipe
from mcp_core.results import Mean

sys.path.insert(0, str(Path(__file__).parents[1]))

MACHINE = hardware.detect()
SENTENCES = (
    "The ferry left the island a little before seven, with only the postman and two goats on board.",
    "def area(width, height):\n    return width * height  # square metres\n",
    '{"city": "Lisbon", "days": 3, "units": "metric"}',
    "If 3x + 4 = 19 then 3x = 15 and so x = 5.",
    "Wer zu spät kommt, den erwartet niemand mehr.",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tiny_llama import build_tiny_llama

    return build_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def recipe(tiny, monkeypatch):
    monkeypatch.setenv("MCP_MODEL_ROOTS", str(tiny.parent))
    model = {"source": "folder", "id": str(tiny)}
    return Recipe.from_dict({"model": model, "device": "cpu", "dtype": "fp32", "threads": 1})


def own_text(rows):
    import json

    return texts.add("mine.jsonl", "\n".join(json.dumps(row) for row in rows).encode()).sha256


@pytest.fixture
def few_steps(monkeypatch):
    """Decoding a thousand tokens takes a while: a tenth of them here."""
    monkeypatch.setattr(fidelity_text, "DECODED_TOKENS", 100)
    monkeypatch.setattr(fidelity_text, "_DECODED_SHARE", 20)


@pytest.fixture
def plain():
    return own_text([{"text": each * 2, "stratum": str(n % 2)} for n, each in enumerate(SENTENCES)])


def judged(recipe, text, *, report=lambda *_: None, stopped=None, floor=None, keep_floor=lambda _: None):
    plan = make_plan(recipe, MACHINE, text_sha256=text)
    return judge(plan, report, stopped or threading.Event(), floor=floor, keep_floor=keep_floor)


def quantized(recipe):
    return recipe.replace({"quantization.scheme": "torchao-int8-weight-only"})


def test_the_reference_itself_has_kl_zero(recipe, plain):
    found = judged(recipe, plain).fidelity
    assert (found.status, found.kl.mean, found.kl.max, found.top1.mean) == ("measured", 0.0, 0.0, 1.0)
    assert found.perplexity == found.reference_perplexity
    assert found.kl_over_floor in (0.0, None)
    assert found.documents == 5
    assert "screening only: 5 documents" in found.notes


def test_a_scheme_is_found_further_than_the_floor(recipe, plain):
    said = []
    kept = []
    found = judged(quantized(recipe), plain, report=lambda *each: said.append(each), keep_floor=kept.append)
    assert found.fidelity.kl.mean > 1e-5
    assert found.fidelity.kl_over_floor is None or found.fidelity.kl_over_floor > 10  # fp32 may agree to the bit
    assert found.fidelity.noise_floor == found.floor == kept[0]
    assert found.fidelity.tokens == sum(2 * len(each.encode()) - 1 for each in SENTENCES)
    assert [row.name for row in found.fidelity.strata] in (["0", "1"], ["1", "0"])
    assert found.fidelity.strata[0].kl.mean >= found.fidelity.strata[1].kl.mean
    assert {stage for stage, _, _ in said} >= {"load", "quantize"}


def test_documents_shorter_than_a_chunk_have_a_floor_too(recipe):
    found = judged(recipe, own_text([{"text": each[:40]} for each in SENTENCES * 2])).fidelity
    assert 0 < found.noise_floor.mean < 1e-9  # fp32, halves instead of the whole
    assert found.kl_over_floor == 0.0


def test_in_turns_gives_what_beside_each_other_gives(recipe, plain, monkeypatch):
    beside = judged(quantized(recipe), plain)
    monkeypatch.setattr(module._Judge, "_both_fit", lambda _: False)
    loads = counted_loads(monkeypatch)
    one_turn = judged(quantized(recipe), plain)
    assert loads == ["none", "torchao-int8-weight-only"]
    monkeypatch.setattr(module, "_HOST_BYTES", 300 * 4 * 400)  # logits of 400 positions
    several = judged(quantized(recipe), plain)
    assert loads[2:] == ["none", "torchao-int8-weight-only"] * 2
    assert beside.fidelity == one_turn.fidelity == several.fidelity
    assert beside.token_map == one_turn.token_map == several.token_map


def counted_loads(monkeypatch):
    loads, load = [], module.loader.load

    def counted(resolved, recipe, *rest):
        loads.append(recipe.quantization.scheme)
        return load(resolved, recipe, *rest)

    monkeypatch.setattr(module.loader, "load", counted)
    return loads


def test_a_known_floor_is_not_measured_again(recipe, plain):
    floor = Mean(mean=1e-3)
    found = judged(quantized(recipe), plain, floor=floor, keep_floor=lambda _: pytest.fail("measured"))
    assert found.fidelity.noise_floor == floor
    assert found.fidelity.kl_over_floor == pytest.approx(found.fidelity.kl.mean / 1e-3)


def test_prompts_are_scored_on_the_reference_s_replies_alone(recipe, monkeypatch):
    monkeypatch.setattr(fidelity_passages, "REPLY_TOKENS", 12)
    prompts = [{"prompt": f"{each} What comes next, and why?"} for each in SENTENCES[:3]]
    prompts.append(
        {"messages": [{"role": "user", "content": "Hi there, who is it?"}, {"role": "assistant", "content": "no"}]}
    )
    found = judged(quantized(recipe), own_text(prompts))
    documents = found.token_map.documents
    assert all(each.is_reply for each in documents)
    for document in documents:
        scored = [token for token in document.tokens if token.kl is not None]
        assert 1 <= len(scored) <= 12
        assert document.tokens[-len(scored) :] == tuple(scored)
        assert all(token.reference_top[0][0] == token.text for token in scored)  # greedy: what it says is its best
    assert "".join(token.text for token in documents[-1].tokens).count("Hi there") == 1
    assert not any("no<|im_end|>" in "".join(token.text for token in each.tokens) for each in documents[-1:])
    assert judged(recipe, own_text(prompts)).token_map.documents[0].diverges_at is None


@pytest.mark.usefixtures("few_steps")
def test_a_kv_kind_is_judged_one_token_a_step_and_in_the_serving_s_chunks(recipe):
    long = own_text([{"text": (each * 20)[:300]} for each in SENTENCES])
    found = judged(recipe.replace({"kv.kind": "quantized-fp8"}), long).fidelity
    assert found.path == "decode"
    assert found.tokens == 5 * 20
    assert found.kl.mean > 1e-6
    assert [row.name for row in found.strata if row.name.startswith("served in chunks of 256")]
    assert judged(recipe.replace({"kv.kind": "static"}), long).fidelity.kl.max < 1e-9


@pytest.mark.usefixtures("few_steps")
def test_a_kv_kind_in_turns_gives_the_same(recipe, monkeypatch):
    long = own_text([{"text": (each * 20)[:300]} for each in SENTENCES])
    fp8 = recipe.replace({"kv.kind": "quantized-fp8"})
    beside = judged(fp8, long)
    monkeypatch.setattr(module._Judge, "_both_fit", lambda _: False)
    assert judged(fp8, long).fidelity == beside.fidelity


def test_too_little_text_for_a_kv_kind_is_refused(recipe, plain):
    with pytest.raises(InputError, match="1,024 tokens of 4 texts"):
        judged(recipe.replace({"kv.kind": "quantized-fp8"}), plain)


def test_documents_over_the_context_are_left_out_and_said(recipe):
    rows = [{"text": SENTENCES[0] * 10}, {"text": SENTENCES[0] * 2}]
    found = judged(recipe, own_text(rows)).fidelity
    assert found.documents == 1
    assert "1 document is longer than the context of 512 tokens and left out" in found.notes
    with pytest.raises(ContextTooLong):
        judged(recipe, own_text(rows[:1]))


def test_a_prompt_that_fills_the_context_is_refused_by_name(recipe):
    with pytest.raises(ContextTooLong, match="prompt of row 1 has"):
        judged(recipe, own_text([{"prompt": SENTENCES[0] * 6}]))


def test_stopping_is_noticed_between_chunks(recipe, plain):
    stopped = threading.Event()

    def stop_when_scoring(stage, *_):
        if stage == "quantize":
            stopped.set()

    with pytest.raises(Cancelled):
        judged(quantized(recipe), plain, report=stop_when_scoring, stopped=stopped)


def failing_load(monkeypatch, times):
    load, left = module.loader.load, [times]

    def fail(resolved, recipe, *rest):
        if recipe.quantization.scheme != "none" and left[0]:
            left[0] -= 1
            raise OutOfMemory("Memory ran out while loading tiny on cpu.")
        return load(resolved, recipe, *rest)

    monkeypatch.setattr(module.loader, "load", fail)


def test_where_both_do_not_fit_after_all_they_take_turns(recipe, plain, monkeypatch):
    expected = judged(quantized(recipe), plain).fidelity
    failing_load(monkeypatch, times=1)
    assert judged(quantized(recipe), plain).fidelity == expected


def test_memory_that_runs_out_while_quantizing_is_said(recipe, plain, monkeypatch):
    failing_load(monkeypatch, times=2)
    with pytest.raises(OutOfMemory, match="while quantizing the candidate"):
        judged(quantized(recipe), plain)


@pytest.fixture
def packed(recipe, tmp_path, monkeypatch):
    """The tiny model as a checkpoint of int8 weights, written as ``mcp-core quantize`` does."""
    from mcp_core.memory.quantization.saving import write_library
    from mcp_core.models import catalog, loader

    folder = tmp_path / "int8"
    folder.mkdir()
    write_library(loader.load(catalog.resolve(recipe.model), quantized(recipe), lambda *_: None), folder)
    monkeypatch.setenv("MCP_MODEL_ROOTS", f"{Path(recipe.model.id).parent}:{tmp_path}")
    return recipe.replace({"model": {"source": "folder", "id": str(folder)}})


def test_a_packed_checkpoint_is_as_far_from_its_original_as_the_scheme_is(recipe, packed, plain, monkeypatch):
    expected = judged(quantized(recipe), plain).fidelity
    plan = make_plan(packed, MACHINE, text_sha256=plain, original=recipe.model, reference_dtype="fp32")
    found = judge(plan, lambda *_: None, threading.Event()).fidelity
    assert (found.kl, found.top1, found.perplexity) == (expected.kl, expected.top1, expected.perplexity)
    monkeypatch.setattr(module._Judge, "_both_fit", lambda _: False)
    assert judge(plan, lambda *_: None, threading.Event()).fidelity == found


def test_an_original_with_other_tokens_is_refused(recipe, packed, plain, monkeypatch):
    plan = make_plan(packed, MACHINE, text_sha256=plain, original=recipe.model)
    encode = fidelity_passages.encode
    seen = []

    def other(tokenizer, text, **options):
        seen.append(tokenizer)
        return [*encode(tokenizer, text, **options), *([7] if tokenizer is not seen[0] else [])]

    monkeypatch.setattr(fidelity_passages, "encode", other)
    with pytest.raises(InputError, match=r"cannot be the original of .*: .* is \d+ tokens"):
        judge(plan, lambda *_: None, threading.Event())
