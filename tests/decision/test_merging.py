from __future__ import annotations

import pytest

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
