from __future__ import annotations

import pytest

from mcp_core import errors
from mcp_core.results import Failure


def all_errors():
    found, todo = [], [errors.McpError]
    while todo:
        cls = todo.pop()
        found.append(cls)
        todo += cls.__subclasses__()
    return found


def test_all_lists_every_error_and_the_tree_in_the_docstring_names_them():
    for cls in all_errors():
        assert cls.__name__ in errors.__all__
        assert cls.__name__ in errors.__doc__


def test_kinds_are_unique_words():
    kinds = [cls.kind for cls in all_errors()]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize("cls", all_errors())
def test_an_error_crosses_a_process_border(cls):
    sent = cls("what was wrong", "what to do")
    received = errors.error_from(sent.as_dict())
    assert type(received) is cls
    assert (received.message, received.hint) == ("what was wrong", "what to do")
    assert Failure.of(sent).model_dump() == sent.as_dict()


def test_an_unknown_kind_keeps_its_message():
    assert str(errors.error_from({"kind": "new", "message": "m", "hint": "h"})) == "m h"
