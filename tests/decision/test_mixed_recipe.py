"""What is kept dense for which budget, on groups whose answer can be worked out by hand."""

from __future__ import annotations

import pytest

from mcp_core.decision.mixed_recipe import keep_within_kl, keep_within_memory
from mcp_core.evaluation.sensitivity_values import GroupSensitivity, Sensitivity
from mcp_core.recipe import Recipe

MB = 1_000_000


def group(name: str, kl: float, dense_mb: int = 8) -> GroupSensitivity:
    return GroupSensitivity(
        name=name,
        pattern=f"{name}.*",
        modules=7,
        kl_mean=kl,
        kl_max=kl * 10,
        top1=0.9,
        dense_bytes=dense_mb * MB,
        packed_bytes=dense_mb * MB // 4,
    )


def sensitivity(*groups: GroupSensitivity) -> Sensitivity:
    dense = sum(each.dense_bytes for each in groups)
    together = group("all", 1.0).model_copy(update={"dense_bytes": dense, "packed_bytes": dense // 4})
    return Sensitivity(
        scheme="bnb-nf4",
        by="layer",
        groups=groups,
        together=together,
        dense_weights_bytes=dense + 10 * MB,
        tokens=512,
        text_name="a text",
        text_sha256="0" * 64,
        seconds=1.0,
    )


EQUAL = sensitivity(group("a", 0.6), group("b", 0.3), group("c", 0.1))


def test_the_worst_are_kept_until_the_rest_is_within_the_kl_budget() -> None:
    mixed = keep_within_kl(EQUAL, 0.4)
    assert [each.name for each in mixed.kept] == ["a"]
    assert mixed.remaining == pytest.approx(0.4)
    assert mixed.added_bytes == 6 * MB
    assert mixed.weights_bytes == (10 + 3 * 2 + 6) * MB


def test_a_budget_that_asks_for_nothing_keeps_nothing() -> None:
    assert keep_within_kl(EQUAL, 1.0).kept == ()
    assert keep_within_memory(EQUAL, 0.0).kept == ()
    assert keep_within_memory(EQUAL, 0.0).remaining == 1.0


def test_no_loss_left_keeps_all() -> None:
    assert len(keep_within_kl(EQUAL, 0.0).kept) == 3


def test_where_all_groups_are_kept_nothing_is_quantized() -> None:
    recipe = Recipe().replace({"quantization.scheme": "bnb-nf4", "quantization.double_quant": True})
    assert keep_within_kl(EQUAL, 0.0).recipe(recipe).quantization == Recipe().quantization
    assert keep_within_kl(EQUAL, 0.1).recipe(recipe).quantization.scheme == "bnb-nf4"


def test_the_memory_budget_is_held() -> None:
    # Packed weights: 10 + 3 x 2 = 16 MB; each group kept dense adds 6 MB.
    assert [each.name for each in keep_within_memory(EQUAL, 0.8).kept] == ["a", "b"]
    assert [each.name for each in keep_within_memory(EQUAL, 0.74).kept] == ["a"]


def test_a_small_group_goes_before_a_large_one_that_loses_a_little_more() -> None:
    uneven = sensitivity(group("large", 0.5, 40), group("small", 0.4, 4))
    assert [each.name for each in keep_within_memory(uneven, 0.3).kept] == ["small"]


def test_a_group_that_loses_nothing_is_never_kept() -> None:
    assert [each.name for each in keep_within_memory(sensitivity(group("a", 0.2), group("b", 0.0)), 9.0).kept] == [
        "a"
    ]


def test_the_mixed_recipe_names_the_kept_groups_only() -> None:
    recipe = Recipe().replace({"quantization.scheme": "bnb-nf4", "quantization.skip": ["old.*"]})
    mixed = keep_within_kl(EQUAL, 0.1).recipe(recipe)
    assert mixed.quantization.skip == ("a.*", "b.*")
    assert mixed.replace({"quantization.skip": []}) == recipe.replace({"quantization.skip": []})
