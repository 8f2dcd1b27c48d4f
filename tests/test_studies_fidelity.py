"""Starting a fidelity study and reading what is known, without processes."""

from __future__ import annotations

from mcp_core.decision.store import Store
from mcp_core.presets import bundled
from mcp_core.results import Fidelity
from mcp_core.studies import Studies
from mcp_core.token_map import TokenMap


def test_a_study_is_asked_for_and_what_is_stored_is_read():
    asked = []

    def submit(verb, title, request, recipe, hub_token=None):
        asked.append((verb, title, request, recipe, hub_token))
        return "job-1"

    recipe, found = bundled(), Fidelity(status="measured", key="a" * 64)
    with Store() as store:
        studies = Studies(submit, tuple, lambda: store)
        assert studies.start_fidelity(recipe, "b" * 64, "token", fresh=True) == "job-1"
        ((verb, title, request, about, token),) = asked
        assert (verb, about, token) == ("fidelity", recipe, "token")
        assert title.startswith("fidelity of smollm2")
        assert request == {"recipe": recipe.model_dump(mode="json"), "text_sha256": "b" * 64, "fresh": True}
        store.add_fidelity(recipe, found, TokenMap())
        assert studies.fidelity("a" * 64).fidelity == found
        assert [each.recipe for each in studies.fidelities()] == [recipe]
        assert studies.token_map("a" * 64) == TokenMap()
        assert studies.fidelity("c" * 64) is studies.token_map("c" * 64) is None
