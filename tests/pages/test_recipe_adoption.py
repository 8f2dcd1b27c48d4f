"""A Recipe taken over from another page: the Recipe page says what was changed, and a server elsewhere has none."""

from __future__ import annotations

from collections.abc import Callable

import fake_workbench as fakes
from streamlit.testing.v1 import AppTest

from mcp_core.presets import bundled
from mcp_core.recipe import ModelRef
from pages._ui import frame

OpenPage = Callable[[str], AppTest]


def told(at: AppTest) -> list[str]:
    return [each.value for each in at.info if "Set by" in each.value]


def advised(app: AppTest) -> AppTest:
    """The app after the Handbook's button for mixed precision, which opens the Recipe page."""
    app.run().switch_page(frame.path_of("handbook")).run()
    app.button(key="advice-Mixed precision").click().run()
    return app.switch_page(frame.path_of("recipe")).run()


def test_advice_sets_its_field_and_the_recipe_page_says_which(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    at = advised(app)
    assert not at.exception
    assert at.session_state["mcp_recipe"] == bundled().replace({"dtype": "bf16"})
    assert told(at) == ["**Set by the Handbook's advice on Mixed precision:** Dtype: `fp32` → `bf16`."]


def test_it_is_said_until_the_recipe_is_another(app: AppTest, wb: fakes.FakeWorkbench) -> None:
    at = advised(app)
    assert told(at.run())
    at.button(key="preset-bundled").click().run()
    assert not told(at)


def test_the_handbook_says_what_a_button_would_set(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    at = page("handbook").run()
    assert "Sets Dtype\\: bf16." in [each.value for each in at.caption]
    assert at.button(key="advice-Mixed precision").label == "Set it"


def test_a_recipe_that_changes_nothing_says_so(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    run = fakes.ok_run("r1")
    wb.add(run)
    at = page("runs")
    at.query_params["run"] = run.id
    at.run().button(key=f"use-{run.id}").click().run()
    recipe = page("recipe")
    for name in ("mcp_recipe", "mcp_adopted_recipe"):
        recipe.session_state[name] = at.session_state[name]
    (line,) = told(recipe.run())
    assert line.startswith("**Set by Run r1:**")
    assert "nothing, the Recipe was this one already." in line


def test_a_run_of_a_server_elsewhere_has_no_recipe_to_use(page: OpenPage, wb: fakes.FakeWorkbench) -> None:
    run = fakes.ok_run("r1")
    foreign = run.recipe.model_copy(update={"model": ModelRef(source="endpoint", id="http://10.0.0.2:8000")})
    wb.add(run.model_copy(update={"recipe": foreign}))
    at = page("runs")
    at.query_params["run"] = run.id
    at.run()
    assert not at.exception
    assert f"use-{run.id}" not in {each.key for each in at.button}
    assert any("a server that MCP did not start" in each.value for each in at.caption)
