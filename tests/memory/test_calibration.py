from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_llama import CHAT_TEMPLATE, byte_tokenizer

from mcp_core import texts
from mcp_core.errors import InputError, RecipeError
from mcp_core.memory import calibration
from mcp_core.memory.calibration import FoundRanges, calibrate
from mcp_core.memory.quantization.conversion import Conversion
from mcp_core.models.text_codec import TextCodec
from mcp_core.recipe import Recipe
from mcp_core.results import AlphaLoss

CODEC = TextCodec(byte_tokenizer().backend_tokenizer, CHAT_TEMPLATE, {}, frozenset(), frozenset())
SMALL = {"quantization.calibration.samples": 4, "quantization.calibration.tokens": 16, "dtype": "fp32"}


def asked(model: str | None = "0" * 64, **changes: Any) -> Conversion:
    """A conversion to int8 static of a model with this content hash."""
    scheme = {"quantization.scheme": "torchao-int8-static"}
    text = {"quantization.calibration.text": texts.add("short.txt", b"A short text, and its words. " * 9).sha256}
    recipe = Recipe().replace(
        text | SMALL | scheme | {name.replace("__", "."): each for name, each in changes.items()}
    )
    if recipe.model.source == "bundled":
        recipe = recipe.replace({"model.sha256": model})
    return Conversion(recipe, torch.float32, torch.device("cpu"), ("lm_head",), CODEC, lambda part, text: None)


class Counted:
    """A model whose forward passes are counted."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model, self.passes, self.heard = model, 0, []
        model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.passes += 1

    def calibrate(self, conversion: Conversion) -> FoundRanges:
        return calibrate(self.model, conversion, lambda part, text: self.heard.append((part, text)))


@pytest.fixture
def model(llama: LlamaForCausalLM) -> Counted:
    return Counted(llama)


def test_every_passage_is_run_once_and_told(model: Counted) -> None:
    found = model.calibrate(asked())
    assert model.passes == 4
    assert [part for part, _ in model.heard] == [0.0, 0.25, 0.5, 0.75]
    assert model.heard[0][1] == "short.txt: passage 1 of 4."
    assert {each.tokens for each in found.ranges.values()} == {64}
    assert {each.tokens for each in found.partial.values()} == {48}  # one passage is held out
    assert len(found.held_out()) == 1
    assert not found.reused


def test_kept_ranges_are_reused_without_a_forward_pass(model: Counted) -> None:
    first, again = model.calibrate(asked()), model.calibrate(asked())
    assert model.passes == 4
    assert again.reused
    assert again.told(None, (), 0.0).reused
    for name, each in first.ranges.items():
        assert torch.equal(again.ranges[name].channels, each.channels)
        assert torch.equal(again.partial[name].channels, first.partial[name].channels)
        assert (again.ranges[name].dimensions, again.ranges[name].tokens) == (3, 64)


@pytest.mark.parametrize(
    "other",
    [
        {"quantization__scheme": "torchao-int8-static-smoothquant"},
        {"quantization__scheme": "torchao-int8-static-smoothquant", "quantization__alpha": 0.7},
        {"quantization__skip": ["*.o_proj"]},
        {"batching__max_requests": 3},
    ],
)
def test_what_changes_no_range_reuses_them(model: Counted, other: dict[str, Any]) -> None:
    model.calibrate(asked())
    assert model.calibrate(asked(**other)).reused


@pytest.mark.parametrize(
    "other",
    [
        {"quantization__calibration__samples": 5},
        {"quantization__calibration__tokens": 17},
        {"attention": "eager"},
        {"model": "1" * 64},
    ],
)
def test_what_changes_ranges_makes_new_ones(model: Counted, other: dict[str, Any]) -> None:
    model.calibrate(asked())
    assert not model.calibrate(asked(**other)).reused


def test_another_text_makes_new_ranges(model: Counted) -> None:
    mine = texts.add("mine.txt", b"Some words of my own. " * 40)
    model.calibrate(asked())
    found = model.calibrate(asked(quantization__calibration__text=mine.sha256))
    assert not found.reused
    assert found.told(None, (), 0.0).text == "mine.txt"


def test_a_model_without_a_hash_is_not_kept(model: Counted) -> None:
    model.calibrate(asked(model=None))
    assert not model.calibrate(asked(model=None)).reused
    assert model.passes == 8


def test_ranges_that_cannot_be_read_are_found_again(model: Counted) -> None:
    found = model.calibrate(asked())
    assert found.folder is not None
    (found.folder / "ranges.safetensors").write_bytes(b"damaged")
    assert not model.calibrate(asked()).reused
    assert model.calibrate(asked()).reused


def test_a_calibration_that_was_stopped_leaves_nothing(model: Counted) -> None:
    def stop(part: float, text: str) -> None:
        if part >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model.model, asked(), stop)
    assert not any(module._forward_pre_hooks for name, module in model.model.named_modules() if name)
    assert not model.calibrate(asked()).reused


def test_alphas_are_kept_with_the_ranges(model: Counted) -> None:
    found = model.calibrate(asked())
    assert found.kept_alphas() == ()
    tried = (AlphaLoss(alpha=0.5, kl=0.1), AlphaLoss(alpha=0.6, kl=0.2))
    found.keep_alphas(tried)
    assert model.calibrate(asked()).kept_alphas() == tried


def test_random_weights_see_random_tokens(model: Counted) -> None:
    found = model.calibrate(asked(model__source="shape", model__id="llama-2-7b"))
    told = found.told(None, (), 0.0)
    assert told.random_tokens
    assert (told.text, told.sha256) == ("random tokens", None)


def test_a_text_that_is_not_here_is_an_input_error(model: Counted) -> None:
    with pytest.raises(InputError, match="There is no text"):
        model.calibrate(asked(quantization__calibration__text="a" * 64))


def test_passages_longer_than_the_context_are_refused(model: Counted) -> None:
    model.model.config.max_position_embeddings = 32
    with pytest.raises(RecipeError, match=r"calibration\.tokens: 33 asked, the model's context is 32"):
        model.calibrate(asked(quantization__calibration__tokens=33))


def test_values_that_are_not_finite_name_the_layer(model: Counted) -> None:
    with torch.no_grad():
        model.model.model.layers[1].mlp.up_proj.weight.fill_(float("inf"))
    with pytest.raises(RecipeError, match=r"inputs of model\.layers\.1\.mlp\.down_proj are not finite in float32"):
        model.calibrate(asked())
    assert calibration.paths.home("calibrations").is_dir()
    assert list(calibration.paths.home("calibrations").iterdir()) == []
