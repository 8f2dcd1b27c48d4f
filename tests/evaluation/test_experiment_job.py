"""Experiments run for real on a tiny random Llama, and their instruments on known quantities."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mcp_core.errors import McpError, OutOfMemory, RecipeError
from mcp_core.evaluation import experiment_job, experiment_results
from mcp_core.evaluation.experiment_arms import Arm, Work, distribution_agreement, peak_bytes, timed_ms
from mcp_core.evaluation.experiment_values import ExperimentResult
from mcp_core.hardware import detect
from mcp_core.inference.kv_cache import cache_factory
from mcp_core.jobs import EVENTS, Job
from mcp_core.recipe import Recipe
from tests.tiny_llama import build_tiny_llama

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"cpu": experiment_job.Sizes(16, 64, 4, 256, 1, 32)}
    monkeypatch.setattr(experiment_job, "_SIZES", sizes)
    monkeypatch.setattr(experiment_job, "REPEATS", 6)
    monkeypatch.setattr(experiment_job, "TRAINING_REPEATS", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("tiny"))


def try_it(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ExperimentResult:
    monkeypatch.setenv("MCP_MODEL_ROOTS", str(folder.parent))
    recipe = Recipe(device="cpu", threads=1).replace({"model.source": "folder", "model.id": str(folder)})
    job = Job(tmp_path, {"name": name, "recipe": recipe.model_dump(mode="json")}, {})
    outcome = asyncio.run(experiment_job.run(job))
    assert outcome.state == "done"
    return ExperimentResult.model_validate(outcome.result)


@pytest.mark.parametrize(
    ("name", "works"),
    [
        ("kv-cache-off", ["4 tokens after 16", "4 tokens after 64"]),
        ("efficient-attention", ["Prompt of 192 tokens", "4 tokens after 192"]),
        ("autocast", ["Prompt of 64 tokens", "4 tokens after 64"]),
        ("gradient-checkpointing", ["Training step, 1 x 32 tokens", "4 tokens after 64"]),
        ("classic-dynamic", ["Prompt of 64 tokens", "4 tokens after 64"]),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_runs_and_its_result_is_kept(name, works, folder, tmp_path, monkeypatch):
    found = try_it(name, folder, tmp_path, monkeypatch)
    assert [each.what for each in found.comparisons] == works
    assert all(each.ratio.low <= each.ratio.value <= each.ratio.high for each in found.comparisons)
    assert all(each.repeats == 6 and each.baseline_ms > 0 for each in found.comparisons)
    assert found.agreement is not None
    if name in ("kv-cache-off", "gradient-checkpointing"):
        assert found.agreement.identical is True
    if name in ("autocast", "classic-dynamic"):
        assert 0 < found.agreement.top1 <= 1
        assert found.agreement.kl_mean > 0
    if name == "efficient-attention":
        assert found.notes == ("sdpa ran its flash kernel.",)
    assert experiment_results.latest(detect())[name] == found
    fractions = [json.loads(line)["fraction"] for line in (tmp_path / EVENTS).read_text().splitlines()]
    assert fractions[-1] == 1


def test_what_cannot_run_here_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="a CPU has none"):
        try_it("tf32", folder, tmp_path, monkeypatch)


def test_a_training_step_without_room_is_refused_before_it_starts(folder, tmp_path, monkeypatch):
    machine = detect()
    little = machine.model_copy(
        update={"devices": [each.model_copy(update={"memory_free_bytes": 500_000}) for each in machine.devices]}
    )
    monkeypatch.setattr(experiment_job.hardware, "detect", lambda: little)
    # Weights and gradients of 111 k parameters, and activations of 32 tokens: 1.3 MB.
    with pytest.raises(OutOfMemory, match=r"needs about 0\.0 GB in fp32"):
        try_it("gradient-checkpointing", folder, tmp_path, monkeypatch)


def test_another_text_from_a_lossless_way_is_a_fault(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Arm, "_next", lambda self, tokens, cache: torch.full((1, 1), len(self.label)))
    with pytest.raises(McpError, match="must give the same tokens in fp32"):
        try_it("kv-cache-off", folder, tmp_path, monkeypatch)
    assert experiment_results.latest(detect()) == {}


def test_a_part_that_times_itself_is_believed_and_the_rest_is_timed():
    assert timed_ms(lambda: 12.5, CPU) == 12.5
    assert 20 <= timed_ms(lambda: time.sleep(0.02), CPU) < 200


def test_the_peak_is_what_the_work_held_above_what_was_there():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no such counter here")
    held = torch.ones(30_000_000 // 4)  # was there before
    peak = peak_bytes(lambda: torch.ones(80_000_000 // 4).sum(), CPU, 1000)
    assert peak == pytest.approx(80_000_000, rel=0.1)
    assert held.sum() == 30_000_000 // 4


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=320,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(requires_grad=False)


def arm(model: LlamaForCausalLM) -> Arm:
    return Arm("a", model, cache_factory("dynamic", model.config, 256), 256, 0, nullcontext)


def test_an_arm_decodes_as_generate_does():
    model = llama()
    prompt = tuple(range(5, 25))
    tokens, elapsed_ms = arm(model).do(Work("w", prompt, 8))
    ids = torch.tensor([prompt])
    expected = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert list(tokens) == expected[0, len(prompt) :].tolist()
    assert elapsed_ms > 0


class _Loaded:
    random_weights = False

    class tokenizer:  # noqa: N801 - stands for an attribute
        @staticmethod
        def encode(text: str):
            return type("Encoding", (), {"ids": [ord(char) % 300 for char in text]})


def test_agreement_of_a_model_with_itself_and_with_a_known_change():
    model = llama()
    same = distribution_agreement(arm(model), arm(model), _Loaded, 256)
    assert (same.tokens, same.top1, same.kl_mean) == (256, 1.0, 0.0)
    uniform = llama()
    uniform.lm_head.weight.zero_()
    against = distribution_agreement(arm(model), arm(uniform), _Loaded, 256)
    # KL(P || uniform) = ln V - entropy(P), by hand over the same positions.
    from mcp_core.evaluation.fidelity_text import builtin_evaluation
    from mcp_core.evaluation.sensitivity import passages

    ids = passages(builtin_evaluation().documents, lambda text: _Loaded.tokenizer.encode(text).ids, 256)
    logp = model(torch.tensor([list(each) for each in ids])).logits.log_softmax(-1)
    expected = torch.log(torch.tensor(320.0)) + (logp.exp() * logp).sum(-1).mean()
    assert against.kl_mean == pytest.approx(float(expected), rel=1e-4)


def test_random_weights_are_not_judged():
    model = llama()
    loaded = type("L", (), {"random_weights": True})
    assert distribution_agreement(arm(model), arm(model), loaded, 256) is None
