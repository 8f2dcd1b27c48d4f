"""Fidelities in the store: with their Recipes, newest first, token maps and noise floors beside them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from mcp_core.decision.store import Store
from mcp_core.errors import StoreError
from mcp_core.presets import bundled
from mcp_core.results import Fidelity, Mean
from mcp_core.token_map import MappedDocument, MappedToken, TokenMap

RECIPE = bundled().replace({"quantization.scheme": "bnb-nf4"})


@pytest.fixture
def store(tmp_path):
    with Store(f"sqlite:///{tmp_path / 'runs.sqlite'}") as made:
        yield made


def fidelity(key="a" * 64, floor=2.0):
    return Fidelity(status="measured", key=key, perplexity=Mean(mean=10.5, se=0.25), kl_over_floor=floor)


def token_map():
    known = {"kl": 0.5, "true_p_reference": 0.25, "true_p_candidate": 0.125}
    scored = MappedToken(id=7, text=" é", reference_top=((" é", 0.25),), candidate_top=((" e", 0.5),), **known)
    tokens = (MappedToken(id=1, text="A"), scored)
    return TokenMap(documents=(MappedDocument(name="one", stratum="prose", tokens=tokens, is_reply=True),))


def test_what_goes_in_comes_out_with_its_recipe(store):
    store.add_fidelity(RECIPE, fidelity(), token_map())
    stored = store.fidelity("a" * 64)
    assert (stored.recipe, stored.fidelity) == (RECIPE, fidelity())
    assert store.token_map("a" * 64) == token_map()
    assert store.fidelity("b" * 64) is None
    assert store.token_map("b" * 64) is None


def test_newest_first(store):
    for key in ("b", "c", "a"):
        store.add_fidelity(RECIPE, fidelity(key * 64))
    assert [each.fidelity.key[0] for each in store.fidelities()] == ["a", "c", "b"]
    assert [each.fidelity.key[0] for each in store.fidelities(limit=1)] == ["a"]


def test_measuring_again_replaces_both(store):
    store.add_fidelity(RECIPE, fidelity(), token_map())
    store.add_fidelity(RECIPE, fidelity(floor=3.0))
    assert [each.fidelity.kl_over_floor for each in store.fidelities()] == [3.0]
    assert store.token_map("a" * 64) is None


def test_a_noise_floor_is_kept_and_replaced(store):
    assert store.noise_floor("k") is None
    for mean in (0.25, 0.5):
        store.keep_noise_floor("k", Mean(mean=mean))
    assert store.noise_floor("k") == Mean(mean=0.5)


def test_a_damaged_token_map_is_a_store_error(store):
    store.add_fidelity(RECIPE, fidelity(), token_map())
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE token_maps SET document = x'00ff'"))
    with pytest.raises(StoreError, match=r"^Fidelity a{64} in the store cannot be read") as caught:
        store.token_map("a" * 64)
    assert "--fresh" in caught.value.hint


def test_a_reply_diverges_at_the_first_token_that_the_candidate_would_not_say():
    assert token_map().documents[0].diverges_at == 1
    (document,) = token_map().documents
    assert document.model_copy(update={"is_reply": False}).diverges_at is None
    agreeing = MappedToken(id=7, text="x", candidate_top=(("x", 0.9),))
    assert document.model_copy(update={"tokens": (agreeing,)}).diverges_at is None
