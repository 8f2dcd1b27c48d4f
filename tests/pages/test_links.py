"""Links to what is not here: every page says in one line what was not found and what it shows instead."""

from __future__ import annotations

from collections.abc import Callable

import fake_workbench as fakes
import pytest
from streamlit.testing.v1 import AppTest

from tests.decision.planted import Law, machine, planted_run

OpenPage = Callable[[str], AppTest]

LINKS = (
    ("why", "run", "There is no Run", "The newest is explained instead."),
    ("why", "against", "There is no Run", "Nothing is compared."),
    ("ship", "run", "is not among those that can be shipped.", "The decision's winner is shown instead."),
    ("ship", "decision", "There is no decision", "choose Ship it."),
    ("ship", "target", "There is no target", "is shown instead."),
    ("ship", "goal", "The Goal is not valid JSON", "is used instead."),
    ("decide", "goal", "The Goal is not valid JSON", "Nothing is decided by it."),
    ("measure", "job", "There is no measurement", "None is shown."),
    ("measure", "sweep", "There is no sweep", "None was made here yet."),
    ("runs", "run", "There is no Run", "The list is shown instead."),
    ("runs", "from", "no place", "The newest are shown instead."),
    ("runs", "baseline", "cannot be the baseline", "Nothing is pinned."),
    ("runs", "filter-engine", "No Run has the engine", "left out"),
    ("quality", "fidelity", "is not on this machine", "is shown instead."),
    ("playground", "chat", "That conversation is no longer there", "A new one begins"),
    ("monitor", "range", "There is no time range", "5 min"),
)


IN_AN_EMPTY_STORE = (
    ("why", "run", "There is no Run", "No other was measured."),
    ("ship", "run", "is not among those that can be shipped.", "Measure a model"),
    ("ship", "decision", "There is no decision", "choose Ship it."),
    ("ship", "goal", "The Goal is not valid JSON", "is used instead."),
    ("decide", "goal", "The Goal is not valid JSON", "Nothing is decided without Runs."),
    ("runs", "run", "There is no Run", "Bring it here"),
    ("measure", "sweep", "There is no sweep", "None was made here yet."),
)


@pytest.fixture
def planted(wb: fakes.FakeWorkbench) -> fakes.FakeWorkbench:
    """Two Runs that can be shipped, and a model that is loaded."""
    wb.machine = machine()
    wb.add(fakes.ready_worker())
    for law in (Law(), Law(tpot_ms=40, changes={"batching.max_requests": 8})):
        made, records = planted_run(law, 4)
        made = made.model_copy(update={"recipe": made.recipe.replace({"device": "cpu", "kv.max_context": 512})})
        wb.add(made)
        wb.request_records[made.id] = tuple(records)
    return wb


@pytest.mark.parametrize(("name", "parameter", "problem", "instead"), LINKS)
def test_what_is_not_here_is_said_in_one_line(
    page: OpenPage, planted: fakes.FakeWorkbench, name: str, parameter: str, problem: str, instead: str
) -> None:
    at = page(name)
    at.query_params[parameter] = "n0-such_*thing*"
    at.run()
    assert not at.exception
    said = [each.value.replace("\\", "") for each in at.warning]
    (line,) = [each for each in said if problem in each]
    assert instead in line
    assert "\n" not in line


@pytest.mark.parametrize(("name", "parameter", "problem", "instead"), IN_AN_EMPTY_STORE)
def test_an_empty_store_says_so_too_and_what_to_do(
    page: OpenPage, wb: fakes.FakeWorkbench, name: str, parameter: str, problem: str, instead: str
) -> None:
    test_what_is_not_here_is_said_in_one_line(page, wb, name, parameter, problem, instead)


@pytest.mark.parametrize("name", sorted({name for name, *_ in LINKS}))
def test_nothing_is_said_where_a_link_names_nothing(
    page: OpenPage, planted: fakes.FakeWorkbench, name: str
) -> None:
    at = page(name).run()
    assert not at.exception
    assert not at.warning


def test_what_a_link_names_is_cut_and_never_read_as_markdown(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = page("why")
    at.query_params["run"] = "**x**" * 100
    (line,) = [each.value for each in at.run().warning]
    assert "**x**" not in line
    assert len(line) < 400


def test_a_run_is_not_compared_with_itself(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = page("why")
    at.query_params["run"] = at.query_params["against"] = planted.run_values[0].id
    assert "not compared with itself" in at.run().warning[0].value


def test_a_goal_that_cannot_be_read_is_left_by_a_button(page: OpenPage, planted: fakes.FakeWorkbench) -> None:
    at = page("decide")
    at.query_params["goal"] = "{"
    at.run().button(key="drop-goal").click().run()
    assert not at.exception
    assert not at.warning
    assert at.dataframe
