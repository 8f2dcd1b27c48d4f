"""Fields of a Recipe in the form's words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from mcp_core.recipe import Recipe
from pages._ui.recipe_options import _LABELS, in_labels, label_of


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_that_can_change_has_a_label_and_every_label_a_field() -> None:
    # A custom shape and a draft model are models: their sizes and ids are not told one by one.
    untold = {"schema_version", "model.sha256", "model.shape", "draft"}
    assert set(fields(Recipe)) - untold == set(_LABELS)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("Set kv.max_context to at most 64.", "Set Max context to at most 64."),
        ("Choose batching.mode off without prefix_cache.", "Choose Batching off without Prefix cache."),
        ("device and threads stay.", "device and threads stay."),
        ("kv.kinds and my.kv.kind are no fields.", "kv.kinds and my.kv.kind are no fields."),
    ],
)
def test_sentences_name_fields_as_the_form_does(told: str, words: str) -> None:
    assert in_labels(told) == words


def test_a_field_without_a_place_on_a_form_keeps_its_name() -> None:
    assert label_of("kv.kind") == "KV cache"
    assert label_of("model.shape.layers") == "model.shape.layers"
