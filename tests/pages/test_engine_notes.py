from __future__ import annotations

from streamlit.testing.v1 import AppTest


def page(engine: str) -> AppTest:
    script = (
        "from mcp_core.recipe import Recipe\n"
        "from pages._ui.engine_notes import draw_not_carried\n"
        f"draw_not_carried(Recipe(engine={engine!r}))\n"
    )
    return AppTest.from_string(script).run()


def test_what_does_not_carry_over_is_listed_by_field() -> None:
    (heading, lines) = (each.value for each in page("vllm").markdown)
    assert heading == "##### What vLLM does otherwise"
    assert lines.startswith("- Attention: vLLM chooses its own kernel")


def test_our_own_engine_has_no_list() -> None:
    shown = page("transformers")
    assert not shown.exception
    assert not shown.markdown
