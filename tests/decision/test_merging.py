from __future__ import annotations

import pytest
import sqlalchemy as sa

from mcp_core import cli
from mcp_core.decision.merging import Merged, merge, write_runs
from mcp_core.decision.store import Store
from mcp_core.errors import InputError, ModelNotFound
from mcp_core.results import RequestRecord


@pytest.fixture
def store(tmp_path):
    with Store(f"sqlite:///{tmp_path / 'ours.sqlite'}") as opened:
        yield opened


@pytest.fixture
def theirs(tmp_path, run_number):
    """Another store's file with three Runs."""
    with Store(f"sqlite:///{tmp_path / 'theirs.sqlite'}") as other:
        for number in (1, 2, 3):
            records = (RequestRecord(index=0, status="ok", sent_ms=0.0, ttft_ms=float(number)),)
            other.add(run_number(number), records, telemetry={"number": number})
    return tmp_path / "theirs.sqlite"


def same(store, run_number) -> None:
    assert [store.get(f"run-00{number}") for number in (1, 2, 3)] == [run_number(number) for number in (1, 2, 3)]
    assert [store.records(f"run-00{number}")[0].ttft_ms for number in (1, 2, 3)] == [1.0, 2.0, 3.0]
    assert store.telemetry("run-002") == {"number": 2}


def test_another_store_is_merged_whole_and_once(store, theirs, run_number):
    before = theirs.read_bytes()
    assert merge(store, theirs) == Merged(3, 0)
    same(store, run_number)
    assert merge(store, theirs) == Merged(0, 3)
    assert theirs.read_bytes() == before


def test_runs_go_by_a_file_of_lines(store, theirs, run_number, tmp_path):
    path = tmp_path / "runs.jsonl"
    with Store(f"sqlite:///{theirs}") as other:
        assert write_runs(other, ["run-001", "run-002", "gone", "run-003"], path) == 3
    store.add(run_number(1))
    assert merge(store, path) == Merged(2, 1)
    assert store.records("run-001") == ()  # what was there stays as it was
    assert store.telemetry("run-003") == {"number": 3}


@pytest.mark.parametrize("indent", [2, None])
def test_one_run_s_own_file_is_merged(store, run_number, tmp_path, indent):
    """As bench --out writes it on a GPU host: request records stay there."""
    path = tmp_path / "run.json"
    path.write_text(run_number(7).model_dump_json(indent=indent))
    assert merge(store, path) == Merged(1, 0)
    assert (store.get("run-007"), store.records("run-007")) == (run_number(7), ())
    assert merge(store, path) == Merged(0, 1)
    path.write_text('{"recipe": {}}')
    with pytest.raises(InputError, match=r"the document: .*Field required"):
        merge(store, path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "line 1: this is not JSON"),
        (b"[1]\n", "no stored Run"),
        (b'{"run": {}, "records": 5}', "no stored Run"),
        (b'\n{"run": {}}', "line 2: .*Field required"),
    ],
)
def test_a_bad_line_is_named(store, tmp_path, content, said):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        merge(store, path)


def test_runs_that_cannot_be_read_keep_no_other_out(store, theirs, run_number, capsys):
    with Store(f"sqlite:///{theirs}") as other, other.writing() as connection:
        connection.execute(sa.text("UPDATE runs SET document = '{\"schema_version\": 99}' WHERE id = 'run-002'"))
        connection.execute(sa.text("UPDATE request_records SET document = 'x' WHERE run_id = 'run-003'"))
    merged = merge(store, theirs)
    assert (merged.added, merged.known) == (1, 0)
    assert [each.what for each in merged.unreadable] == ["Run run-003", "Run run-002"]
    assert "schema_version" in merged.unreadable[1].why
    assert store.ids() == ("run-001",)
    assert cli.main(["runs", "merge", str(theirs)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "1 Runs added, 0 were there already"
    assert [line.partition(": ")[0] for line in said[1:]] == ["left out", "left out"]
    assert "run-002" in said[2]


def test_lines_that_cannot_be_read_keep_no_other_out(store, theirs, run_number, tmp_path):
    path = tmp_path / "runs.jsonl"
    with Store(f"sqlite:///{theirs}") as other:
        write_runs(other, ["run-001", "run-002", "run-003"], path)
    one, two, three = path.read_text().splitlines()
    newer = two.replace('"schema_version": 1', '"schema_version": 99')
    path.write_text(f"{one}\n{newer}\n{three}\n{two[:50]}")
    merged = merge(store, path)
    assert merged.added == 2
    assert [each.what for each in merged.unreadable] == ["line 2 (Run 'run-002')", "line 4"]
    assert store.ids() == ("run-003", "run-001")


def test_ours_that_cannot_be_read_stays_and_keeps_no_other_out(store, theirs, run_number):
    store.add(run_number(1))
    with store.writing() as connection:
        connection.execute(sa.text("UPDATE runs SET document = '{}'"))
    assert merge(store, theirs) == Merged(2, 1)


@pytest.mark.parametrize("by_lines", [False, True])
def test_tags_of_both_and_the_newer_note_survive(store, theirs, run_number, tmp_path, by_lines):
    store.add(run_number(1))
    store.add(run_number(2))
    store.remark("run-001", lambda found: found.with_tags(["ours"]).with_note("older"))
    with Store(f"sqlite:///{theirs}") as other:
        other.remark("run-001", lambda found: found.with_tags(["theirs"]).with_note("newer"))
        other.remark("run-002", lambda found: found.with_note("soon older"))
        other.remark("run-003", lambda found: found.with_tags(["came along"]))
        path = tmp_path / "runs.jsonl"
        write_runs(other, other.ids(), path)
    store.remark("run-002", lambda found: found.with_note("written").with_note(""))  # emptied last: it stays empty
    for _ in range(2):
        merge(store, path if by_lines else theirs)
        found = store.remarks()
        assert {each: (found[each].tags, found[each].note) for each in found} == {
            "run-001": (("ours", "theirs"), "newer"),
            "run-002": ((), ""),
            "run-003": (("came along",), ""),
        }


def test_a_file_of_another_kind_is_not_read_on(store, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"\n\x00\xff\n" * 3 + b"{}\n")
    with pytest.raises(InputError, match="line 2: this is not JSON"):
        merge(store, path)


def test_no_file_and_a_damaged_store_are_refused(store, tmp_path):
    with pytest.raises(ModelNotFound, match="No such file"):
        merge(store, tmp_path / "none.jsonl")
    damaged = tmp_path / "damaged.sqlite"
    damaged.write_bytes(b"SQLite format 3\x00" + b"\xff" * 200)
    with pytest.raises(InputError, match="is damaged"):
        merge(store, damaged)


def test_the_command_merges(theirs, capsys):
    assert cli.main(["runs", "merge", str(theirs)]) == 0
    assert capsys.readouterr().err == "3 Runs added, 0 were there already\n"


def test_the_command_merges_several_files(store, theirs, run_number, tmp_path, capsys):
    one = tmp_path / "run.json"
    one.write_text(run_number(7).model_dump_json())
    assert cli.main(["runs", "merge", str(theirs), str(one)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"{theirs}: 3 Runs added, 0 were there already",
        f"{one}: 1 Runs added, 0 were there already",
    ]
