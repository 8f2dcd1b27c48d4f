"""Sensitivity on a tiny Llama in whose one layer a planted outlier ruins the scales."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from mcp_core.documents import Document
from mcp_core.errors import InputError, RecipeError
from mcp_core.evaluation import sensitivity as study
from mcp_core.evaluation.sensitivity_values import GroupSensitivity, Sensitivity
from mcp_core.jobs import Job
from mcp_core.memory import quantization
from mcp_core.memory.layer_swap import Packer, linear_layers, pack_layers
from mcp_core.recipe import Quantization, Recipe

sys.path.insert(0, str(Path(__file__).parents[1]))

SCHEMES = ("bnb-int8", "bnb-nf4", "torchao-int8-weight-only")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llama import build_tiny_llama

    return build_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def llama(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def packer(scheme: str) -> Packer:
    options = Quantization(scheme=scheme)
    config = quantization.configure(options, torch.float32, torch.device("cpu"), ())
    assert config is not None
    return pack_layers(config)


def tokens(passages: int = 4) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (passages, 32), generator=generator).tolist()


def measured(model: LlamaForCausalLM, scheme: str, by: str) -> dict[str, GroupSensitivity]:
    groups = study.grouped(linear_layers(model, ("lm_head",)), by)
    return {each.name: each for each in study.measure(study.Judge(model, tokens()), groups, packer(scheme))}


def plant_outliers(model: LlamaForCausalLM, layer: int) -> None:
    """In each row of down_proj, a weight so large that its block's grid has nothing left for the others.

    It multiplies an input that is always zero, so the dense model predicts as before.
    """
    block = model.model.layers[layer]
    every_block = slice(None, None, 64)
    block.mlp.up_proj.weight.data[every_block] = 0.0
    block.mlp.down_proj.weight.data[:, every_block] = 1000.0


@pytest.mark.parametrize(("scheme", "times"), [("bnb-nf4", 2), ("torchao-int8-weight-only", 100)])
@pytest.mark.parametrize("layer", [0, 1])
def test_the_layer_with_planted_outliers_is_the_worst(
    llama: LlamaForCausalLM, scheme: str, times: float, layer: int
) -> None:
    plant_outliers(llama, layer)
    by_layer = measured(llama, scheme, "layer")
    assert by_layer[f"model.layers.{layer}"].kl_mean > times * by_layer[f"model.layers.{1 - layer}"].kl_mean
    by_kind = measured(llama, scheme, "module")
    del by_kind[study.TOGETHER]
    worst = max(by_kind.values(), key=lambda each: each.kl_mean)
    assert (worst.name, worst.pattern, worst.modules) == ("down_proj", "*.down_proj", 2)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_model_is_as_before_when_all_was_tried(llama: LlamaForCausalLM, scheme: str) -> None:
    judge = study.Judge(llama, tokens())
    before = {name: id(module) for name, module in llama.named_modules()}
    groups = study.grouped(linear_layers(llama, ("lm_head",)), "layer")
    assert all(each.kl_mean > 0 for each in study.measure(judge, groups, packer(scheme)))
    assert judge.distance() == (0.0, 0.0, 1.0)
    assert {name: id(module) for name, module in llama.named_modules()} == before
    assert quantization.quantized_modules(llama) == ()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_packing_in_place_is_what_loading_does(llama: LlamaForCausalLM, folder: Path, scheme: str) -> None:
    judge = study.Judge(llama, tokens())
    names = linear_layers(llama, ("lm_head",))
    config = quantization.configure(Quantization(scheme=scheme), torch.float32, torch.device("cpu"), ("lm_head",))
    loaded = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=config, device_map="cpu"
    )
    packer(scheme)(llama, names)
    expected = judge.distance()
    judge.model = loaded.eval()
    assert judge.distance() == pytest.approx(expected, rel=1e-4)


def test_a_known_shift_of_one_logit_gives_the_kl_by_hand(llama: LlamaForCausalLM) -> None:
    llama.lm_head.weight.data.zero_()  # every prediction uniform over 300
    llama.lm_head.bias = torch.nn.Parameter(torch.zeros(300))
    judge = study.Judge(llama, tokens())
    llama.lm_head.bias.data[7] = math.log(2.0)
    mean, highest, top1 = judge.distance()
    # Q is 2/301 for one id and 1/301 for the 299 others; P is 1/300.
    by_hand = math.log(301 / 300) - math.log(2.0) / 300
    assert mean == pytest.approx(by_hand, rel=1e-3)
    assert highest == pytest.approx(by_hand, rel=1e-3)
    assert top1 == 0.0


def test_groups_by_layer_and_by_kind() -> None:
    names = (
        "model.layers.1.mlp.up_proj",
        "model.layers.11.mlp.up_proj",
        "model.layers.1.self_attn.q_proj",
        "score",
    )
    assert study.grouped(names, "layer") == {
        "model.layers.1.*": (names[0], names[2]),
        "model.layers.11.*": (names[1],),
        "score": ("score",),
    }
    assert list(study.grouped(names, "module")) == ["*.up_proj", "*.q_proj", "score"]


def test_passages_are_spread_over_the_documents() -> None:
    documents = [Document(str(index), chr(65 + index) * 200) for index in range(8)]
    found = study.passages(documents, lambda text: [ord(letter) for letter in text], 512)
    assert [ids[0] - 65 for ids in found] == [0, 2, 4, 6]
    assert {len(ids) for ids in found} == {study.PASSAGE_TOKENS}


def test_documents_too_short_for_a_passage_are_refused() -> None:
    with pytest.raises(InputError, match="has 128 tokens"):
        study.passages([Document("a", "short")], lambda text: [1] * len(text), 512)


def job(tmp_path: Path, recipe: Recipe, by: str = "layer") -> Job:
    return Job(tmp_path, {"recipe": recipe.model_dump(mode="json"), "by": by, "tokens": 256}, {})


def own_recipe(folder: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> Recipe:
    monkeypatch.setenv("MCP_MODEL_ROOTS", str(folder))
    changes = {"model.source": "folder", "model.id": str(folder), "dtype": "fp32", "threads": 1}
    return Recipe().replace({"quantization.scheme": scheme, **changes})


def test_the_job_answers_a_sensitivity_worst_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = own_recipe(folder, monkeypatch, "bnb-nf4").replace({"quantization.skip": ["model.layers.0.*"]})
    outcome = asyncio.run(study.run(job(tmp_path, recipe)))
    answer = Sensitivity.model_validate(outcome.result)
    assert outcome.state == "done"
    assert {each.name for each in answer.groups} == {"model.layers.0", "model.layers.1"}
    assert answer.groups[0].kl_mean >= answer.groups[1].kl_mean
    assert answer.together.kl_mean > answer.groups[1].kl_mean
    assert answer.together.dense_bytes == sum(each.dense_bytes for each in answer.groups)
    assert answer.together.packed_bytes < answer.together.dense_bytes / 4
    assert answer.tokens == 256
    assert answer.unpacked == ()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[-1]["stage"] == "measure"
    assert events[-1]["fraction"] == 1.0


@pytest.mark.parametrize("scheme", ["torchao-int8-static-smoothquant", "torchao-int8-dynamic", "classic-dynamic"])
def test_schemes_that_change_a_dense_model_are_tried_a_group_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("MCP_HOME", str(tmp_path / "home"))
    outcome = asyncio.run(study.run(job(tmp_path, own_recipe(folder, monkeypatch, scheme))))
    answer = Sensitivity.model_validate(outcome.result)
    assert len(answer.groups) == 2
    assert 0 < answer.groups[0].kl_mean < answer.together.kl_mean * 2
    assert answer.together.packed_bytes != answer.together.dense_bytes


def test_a_mixture_whose_experts_are_fused_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    recipe = Recipe().replace({"model": {"source": "shape", "id": "qwen3-30b-a3b"}, "device": "cpu"})
    with pytest.raises(RecipeError, match="mixture of experts"):
        asyncio.run(study.run(job(tmp_path, recipe.replace({"quantization.scheme": "bnb-nf4"}))))


@pytest.mark.parametrize(("scheme", "reason"), [("none", "quantizes nothing"), ("gguf", "quantized already")])
def test_a_scheme_that_cannot_be_tried_on_a_group_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, reason: str
) -> None:
    with pytest.raises(RecipeError, match=reason):
        asyncio.run(study.run(job(tmp_path, own_recipe(folder, monkeypatch, scheme))))
