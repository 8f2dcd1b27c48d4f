from __future__ import annotations

from pathlib import Path

import pytest

from mcp_core import texts
from mcp_core.cli import main
from mcp_core.errors import InputError
from mcp_core.texts import Document, text_set

PROSE = "It was a dark night, and nobody counted the passages.\n\n" * 60


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCP_HOME", str(tmp_path))
    return tmp_path


def test_the_builtin_text_ships_and_has_a_name() -> None:
    builtin = texts.builtin_calibration()
    assert builtin.name == "Jane Austen, Emma, volume I"
    assert builtin.characters > 250_000
    assert builtin == texts.get("builtin")
    assert "Emma Woodhouse, handsome, clever, and rich" in (builtin.documents[0].text or "")
    assert {document.stratum for document in builtin.documents} == {"prose"}


def test_an_added_text_comes_back_whole() -> None:
    added = texts.add("mine.txt", PROSE.encode())
    assert texts.get(added.sha256) == added
    assert [each.sha256 for each in texts.list_texts()] == [added.sha256]
    assert texts.list_texts()[0].documents == len(added.documents)
    assert texts.list_texts()[0].characters == added.characters


def test_chats_come_back_whole() -> None:
    rows = b'{"messages": [{"role": "user", "content": "%s"}], "stratum": "chat"}' % (b"why " * 80)
    added = texts.add("mine.jsonl", rows)
    assert texts.get(added.sha256) == added
    assert added.documents[0].stratum == "chat"


def test_the_hash_is_of_the_content_not_the_name() -> None:
    first, again = texts.add("a.txt", PROSE.encode()), texts.add("b.txt", PROSE.encode(), title="Renamed")
    assert first.sha256 == again.sha256
    assert [each.name for each in texts.list_texts()] == ["Renamed"]
    assert texts.add("a.txt", (PROSE + "More.").encode()).sha256 != first.sha256
    one = text_set("", [Document("1", text="ab"), Document("2", text="c")])
    other = text_set("", [Document("1", text="a"), Document("2", text="bc")])
    assert one.sha256 != other.sha256


def test_a_deleted_text_is_gone() -> None:
    added = texts.add("mine.txt", PROSE.encode())
    texts.delete(added.sha256)
    assert texts.list_texts() == ()
    with pytest.raises(InputError, match="There is no text"):
        texts.get(added.sha256)


@pytest.mark.parametrize("name", ["", "../secret", "*", "a" * 63, "A" * 64])
def test_a_name_that_is_no_hash_reaches_no_file(name: str) -> None:
    with pytest.raises(InputError, match="There is no text"):
        texts.delete(name)


def test_the_command_adds_lists_and_deletes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(PROSE)
    assert main(["texts", "add", str(file), "--name", "My prose"]) == 0
    sha256 = capsys.readouterr().out.strip()
    assert main(["texts"]) == 0
    listed = capsys.readouterr().out
    assert sha256 in listed
    assert "My prose" in listed
    assert "Jane Austen" in listed
    assert main(["texts", "delete", sha256]) == 0
    assert main(["texts", "delete", sha256]) == 2
    assert main(["texts", "add", str(tmp_path / "none.txt")]) == 2
    assert "cannot be read" in capsys.readouterr().err
