"""The instrument on known quantities: identical models, a planted change, transformers' own loss, both paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from mcp_core.documents import Document
from mcp_core.errors import LoadFailed
from mcp_core.evaluation.fidelity_metrics import figures
from mcp_core.evaluation.fidelity_scoring import decode_feeds, prefill_feeds, read, score, windows
from mcp_core.evaluation.fidelity_text import Passage
from mcp_core.inference.kv_cache import cache_factory

VOCAB = 97


def build(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = LlamaConfig(vocab_size=VOCAB, initializer_range=0.3, **sizes, **heads)
    return LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def model():
    return build()


def passage(length=200, scored_from=1, seed=1):
    ids = np.random.default_rng(seed).integers(0, VOCAB, length)
    return Passage(Document("random", text="x", stratum="prose"), tuple(map(int, ids)), scored_from)


def readings(model, text, feeds=prefill_feeds, chunk=64, kind="dynamic"):
    cache = cache_factory(kind, model.config, len(text.ids))()
    return windows(read(model, text, feeds(text, chunk), cache, lambda _: None))


def against(model, other, text=None, **reading):
    text = text or passage()
    (scored,) = score(text, readings(model, text), [readings(other, text, **reading)])
    return scored


def test_identical_models_have_kl_zero_and_top1_one(model):
    scored = against(model, build())
    found = figures([scored.scores])
    assert (found.kl.mean, found.kl.max, found.top1.mean, found.rms_dp.mean) == (0.0, 0.0, 1.0, 0.0)
    assert found.perplexity == found.reference_perplexity
    assert len(scored.scores.kl) == 199
    assert np.array_equal(scored.reference_ids, scored.candidate_ids)


def test_other_models_do_not(model):
    found = figures([against(model, build(seed=5)).scores])
    assert found.kl.mean > 0.1
    assert found.top1.mean < 0.5


class Altered(torch.nn.Module):
    """The same model whose logits are divided by a temperature and shifted by a vector."""

    def __init__(self, model, temperature=1.0, shift=None):
        super().__init__()
        self.model, self.temperature = model, temperature
        self.shift = torch.zeros(VOCAB) if shift is None else shift

    def forward(self, tokens, past_key_values=None, use_cache=True, logits_to_keep=0):
        output = self.model(
            tokens, past_key_values=past_key_values, use_cache=use_cache, logits_to_keep=logits_to_keep
        )
        output.logits = output.logits / self.temperature + self.shift
        return output

    def get_input_embeddings(self):
        return self.model.get_input_embeddings()

    @property
    def config(self):
        return self.model.config


def by_hand(model, text, temperature, shift):
    """KL, both NLLs and the share of equal top tokens from the definitions, in numpy, on one whole forward pass."""
    logits = model(torch.tensor([text.ids])).logits[0, :-1].double().numpy()[text.scored_from - 1 :]
    true_ids = np.array(text.ids[text.scored_from :])

    def probabilities(scores):
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    p, q = probabilities(logits), probabilities(logits / temperature + shift.double().numpy())
    rows = np.arange(len(true_ids))
    kl = (p * np.log(p / q)).sum(axis=1)
    return kl, p[rows, true_ids], q[rows, true_ids], (p.argmax(1) == q.argmax(1))


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_planted_change_gives_the_kl_computed_by_hand(model, temperature, shifted):
    shift = torch.randn(VOCAB, generator=torch.Generator().manual_seed(3)) if shifted else torch.zeros(VOCAB)
    text = passage(150, scored_from=20)
    scored = against(model, Altered(model, temperature, shift), text)
    kl, p, q, same = by_hand(model, text, temperature, shift)
    assert scored.scores.kl == pytest.approx(kl, abs=1e-6)
    assert scored.scores.p_reference == pytest.approx(p, rel=1e-4)
    assert scored.scores.p_candidate == pytest.approx(q, rel=1e-4)
    assert np.array_equal(scored.scores.same_top, same)
    if temperature != 1.0 or shifted:
        assert kl.mean() > 0.01


def test_a_shift_of_all_logits_alike_changes_nothing(model):
    assert figures([against(model, Altered(model, shift=torch.full((VOCAB,), 2.0))).scores]).kl.max < 1e-9


def test_perplexity_is_that_of_transformers_own_loss(model):
    text = passage()
    ids = torch.tensor([text.ids])
    found = figures([against(model, model, text).scores])
    assert found.perplexity.mean == pytest.approx(model(ids, labels=ids).loss.exp().item(), rel=1e-5)


def test_decoding_predicts_as_prefilling_does_in_fp32(model):
    text = passage(160, scored_from=33)
    scored = against(model, model, text, feeds=decode_feeds)
    assert scored.scores.kl.max() < 1e-9
    assert scored.scores.same_top.all()


@pytest.mark.parametrize("kind", ["off", "static", pytest.param("offloaded", marks=pytest.mark.gpu)])
def test_lossless_kv_kinds_predict_as_dynamic_does(model, kind):
    text = passage(90, scored_from=33)
    device = "cuda" if kind == "offloaded" else "cpu"
    scored = against(model.to(device), model, text, feeds=decode_feeds, kind=kind)
    assert scored.scores.kl.max() < 1e-9
    model.to("cpu")


def test_a_lossy_kv_kind_does_not(model):
    scored = against(model, model, passage(200, scored_from=100), feeds=decode_feeds, kind="quantized-fp8")
    assert scored.scores.kl.mean() > 1e-6


@pytest.mark.parametrize("feeds", [prefill_feeds, decode_feeds])
@pytest.mark.parametrize(("length", "scored_from"), [(200, 1), (200, 64), (200, 65), (64, 63), (65, 64), (2, 1)])
def test_feeds_take_every_token_but_the_last_once_and_want_what_is_scored(feeds, length, scored_from):
    text = passage(length, scored_from)
    fed = feeds(text, 64)
    assert [at for each in fed for at in range(each.start, each.stop)] == list(range(length - 1))
    wanted = [at for each in fed for at in range(each.stop - each.kept, each.stop)]
    assert wanted == list(range(scored_from - 1, length - 1))


def test_decoding_takes_single_steps_after_the_prefill():
    sizes = [each.stop - each.start for each in decode_feeds(passage(140, scored_from=129), 64)]
    assert sizes == [64, 64, *[1] * 11]


@pytest.mark.parametrize("sizes", [[200], [1] * 200, [64, 64, 64, 8], [63, 2, 100, 35], [64, 64]])
def test_windows_align_however_rows_come(sizes):
    rows = torch.arange(sum(sizes)).reshape(-1, 1)
    got = list(windows(rows.split(sizes), 64))
    assert [len(each) for each in got[:-1]] == [64] * (len(got) - 1)
    assert torch.equal(torch.cat(got), rows)


def test_several_are_scored_in_lockstep(model):
    text = passage()
    others = [readings(build(5), text), readings(model, text, chunk=16)]
    far, near = score(text, readings(model, text), others)
    assert far.scores.kl.mean() > 0.1
    assert near.scores.kl.mean() < 1e-9


def test_a_broken_model_is_refused_by_name(model):
    broken = Altered(model, shift=torch.full((VOCAB,), torch.nan))
    with pytest.raises(LoadFailed, match='no usable probabilities on "random"'):
        against(model, broken)


def test_tokens_that_a_model_rules_out_count_nothing(model):
    """Some models give padding of the vocabulary a logit of minus infinity."""
    shift = torch.zeros(VOCAB)
    shift[VOCAB - 1] = -torch.inf
    masked = Altered(model, shift=shift)
    text = Passage(Document("d", text="x"), tuple(range(50)))
    assert figures([against(masked, masked, text).scores]).kl.max == 0.0


def test_a_generator_that_is_dropped_frees_its_cache(model):
    text, cache = passage(), DynamicCache(config=model.config)
    reading = read(model, text, prefill_feeds(text, 64), cache, lambda _: None)
    next(reading)
    reading.close()
    assert cache.get_seq_length() == 64
