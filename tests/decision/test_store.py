from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from mcp_core.decision.facts import RunFacts
from mcp_core.decision.remarks import Remarks
from mcp_core.decision.store import Store
from mcp_core.errors import StoreError
from mcp_core.results import Run

TABLES = ("runs", "request_records", "telemetry")


@pytest.fixture
def store(url):
    with Store(url) as made:
        yield made


@pytest.fixture
def sqlite_store(sqlite_url):
    with Store(sqlite_url) as made:
        yield made


def test_what_goes_in_comes_out(store, run_number, records):
    run = run_number(1)
    store.add(run, records, telemetry={"cpu": [1.5, 2.5]})
    assert store.get(run.id) == run
    assert store.records(run.id) == records  # in the order of writing, also beyond nine
    assert store.telemetry(run.id) == {"cpu": [1.5, 2.5]}


def test_what_is_not_there_is_none(store, run_number):
    store.add(run_number(1))
    assert store.get("no-such-run") is None
    assert store.records("run-001") == ()
    assert store.telemetry("run-001") is None


def test_runs_survive_a_restart(url, run_number):
    with Store(url) as first:
        first.add(run_number(1))
    with Store(url) as second:
        assert second.list() == (run_number(1),)


def test_newest_first_in_pages(store, run_number):
    for number in (2, 5, 1, 4, 3):
        store.add(run_number(number))
    assert [run.id for run in store.list()] == [f"run-00{n}" for n in (5, 4, 3, 2, 1)]
    assert [run.id for run in store.list(limit=2, offset=1)] == ["run-004", "run-003"]
    assert store.list(limit=10, offset=5) == ()
    assert store.count() == 5


def test_an_added_run_replaces_one_of_the_same_id(store, run_number, records):
    store.add(run_number(1), records, telemetry=1)
    store.add(run_number(1).model_copy(update={"status": "interrupted"}), records[:2])
    assert store.count() == 1
    assert store.get("run-001").status == "interrupted"
    assert store.records("run-001") == records[:2]
    assert store.telemetry("run-001") is None


def test_delete_removes_everything_of_one_run(store, run_number, records):
    store.add(run_number(1), records, telemetry=1)
    store.add(run_number(2), records, telemetry=2)
    assert store.delete("run-001") is True
    assert store.delete("run-001") is False
    assert store.records("run-002") == records
    with store.reading() as connection:
        left = [connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) for table in TABLES]
    assert left == [1, len(records), 1]


def test_remarks_stand_apart_from_the_run_and_go_with_it(store, run_number):
    assert store.remark("run-001", lambda found: found.with_note("none there")) is None
    store.add(run_number(1))
    store.add(run_number(2))
    changed = store.remark("run-001", lambda found: found.with_tags(["best"]).with_note("Größe: ✓"))
    assert store.remarks() == {"run-001": changed}
    store.add(run_number(1))  # replaced: what people said stays
    assert store.remarks_of("run-001") == changed
    assert store.get("run-001") == run_number(1)
    assert store.remarks_of("run-002") == Remarks()
    store.delete("run-001")
    store.add(run_number(1))
    assert store.remarks() == {}


def test_remarks_taken_away_leave_no_tags(store, run_number):
    store.add(run_number(1))
    store.remark("run-001", lambda found: found.with_tags(["a", "b"]))
    store.remark("run-001", lambda found: found.with_tags([]))
    assert store.remarks() == {}


def test_remarks_that_cannot_be_read_hide_no_others(store, run_number):
    for number in (1, 2):
        store.add(run_number(number))
        store.remark(f"run-00{number}", lambda found: found.with_tags(["kept"]))
    with store.writing() as connection:
        connection.execute(sa.text("UPDATE run_remarks SET document = '[]' WHERE run_id = 'run-001'"))
    assert list(store.remarks()) == ["run-002"]
    with pytest.raises(StoreError, match="run-001"):
        store.remarks_of("run-001")


def test_sqlite_waits_for_others_and_keeps_a_write_ahead_log(sqlite_store):
    with sqlite_store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() >= 5000


WRITER = """
import sys
from mcp_core import hardware
from mcp_core.decision.store import Store
from mcp_core.presets import bundled
from mcp_core.results import RequestRecord, Run, now
from mcp_core.workload import short_chat

url, name = sys.argv[1:]
machine, records = hardware.detect(), [RequestRecord(index=0, status="ok", sent_ms=0.0)] * 20
print("up", flush=True)
sys.stdin.readline()
with Store(url) as store:
    for number in range(25):
        run = Run(id=f"{name}-{number}", created=now(), recipe=bundled(), workload=short_chat(), hardware=machine,
                  status="failed")
        store.add(run, records)
"""


def test_two_processes_write_at_once(url):
    """From creating the tables on: nothing is lost and nobody is told that the store is locked."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, name], **pipes) for name in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "up\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    with Store(url) as store:
        assert store.count() == 50
        assert all(len(store.records(run.id)) == 20 for run in store.list())


def unsaved(home, run):
    folder = home / "unsaved"
    records = (folder / f"{run.id}.records.jsonl").read_text().splitlines()
    return Run.model_validate_json((folder / f"{run.id}.json").read_text()), records


def test_a_full_disk_loses_no_run(sqlite_store, home, run_number, records):
    @sa.event.listens_for(sqlite_store._engine, "connect")
    def fill(connection, _):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    sqlite_store.add(run_number(0))
    sqlite_store.close()  # the next connection has no page left
    with pytest.raises(StoreError, match="full") as caught:
        sqlite_store.add(run_number(1), records * 100)
    assert str(home / "unsaved" / "run-001.json") in caught.value.message
    assert "Free some disk space" in caught.value.hint
    saved, lines = unsaved(home, run_number(1))
    assert saved == run_number(1)
    assert len(lines) == 1200
    assert [run.id for run in sqlite_store.list()] == ["run-000"]


def test_a_read_only_store_can_be_read_and_loses_no_run(sqlite_url, home, run_number):
    with Store(sqlite_url) as store:
        store.add(run_number(1))
    path = sqlite_url.removeprefix("sqlite:///")
    with Store(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert store.list() == (run_number(1),)
        with pytest.raises(StoreError, match="readonly") as caught:
            store.add(run_number(2))
    assert "writable" in caught.value.hint
    assert unsaved(home, run_number(2))[0] == run_number(2)


def test_when_nothing_can_be_written_it_says_so(store, home, run_number):
    home.mkdir()
    (home / "unsaved").write_text("a file where the folder should be")
    store._writer = sa.create_engine("sqlite:////no/such/folder/runs.sqlite")
    with pytest.raises(StoreError, match=r"could not be written to .* either"):
        store.add(run_number(1))


@pytest.mark.parametrize("content", [b"this is no database at all, but long enough to be read as a page" * 20])
def test_a_corrupt_file_is_an_error_with_a_hint(tmp_path, content):
    path = tmp_path / "runs.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not a database") as caught:
        Store(f"sqlite:///{path}")
    assert "move it away" in caught.value.hint
    assert "\n" not in caught.value.message
    assert path.read_bytes() == content


def test_a_file_damaged_in_the_middle_is_an_error_with_a_hint(sqlite_url, run_number, records):
    with Store(sqlite_url) as store:
        for number in range(20):
            store.add(run_number(number), records)
    with Path(sqlite_url.removeprefix("sqlite:///")).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 8)
    with pytest.raises(StoreError, match="malformed"), Store(sqlite_url) as store:
        store.list()


@pytest.mark.parametrize("url", ["no url", "nosuch://x", "sqlite:////no/such/folder/runs.sqlite"])
def test_an_address_that_cannot_be_used_is_an_error_with_a_hint(url):
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert "MCP_STORE_URL" in caught.value.hint


def test_a_home_that_cannot_be_made_is_an_error_with_a_hint(home):
    home.write_text("a file where the folder should be")
    with pytest.raises(StoreError) as caught:
        Store()
    assert "MCP_HOME" in caught.value.hint


def test_a_password_is_not_shown():
    with pytest.raises(StoreError) as caught:
        Store("postgresql://user:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


def test_a_document_that_cannot_be_read_names_its_run(store, run_number):
    store.add(run_number(1))
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE runs SET document = '{\"schema_version\": 99}'"))
    with pytest.raises(StoreError, match="run-001") as caught:
        store.get("run-001")
    assert "mcp-core runs delete run-001" in caught.value.hint
    assert store.delete("run-001")


def test_the_default_store_lies_in_the_home_folder(home, run_number):
    with Store() as store:
        store.add(run_number(1))
    assert (home / "runs.sqlite").exists()


def test_facts_are_those_of_the_runs_newest_first(url, run_number, records):
    with Store(url) as store:
        for number in (1, 3, 2):
            store.add(run_number(number), records)
        assert [facts.id for facts in store.facts()] == ["run-003", "run-002", "run-001"]
        assert store.facts() is store.facts()
        assert store.facts()[0] == RunFacts.of(run_number(3))
        assert len(store.samples(["run-001", "none"])["run-001"]) == len(records)
        store.delete("run-002")
        assert [facts.id for facts in store.facts()] == ["run-003", "run-001"]
        assert store.samples(["run-002"]) == {}


def test_a_run_that_is_deleted_while_its_facts_are_made_leaves_none(url, run_number, monkeypatch):
    with Store(url) as store:
        store.add(run_number(1))
        store.add(run_number(2))
        with store.writing() as connection:
            connection.execute(sa.text("UPDATE run_facts SET version = 0"))
        read = store.records

        def records_while_another_deletes(run_id):
            store.delete("run-001")
            return read(run_id)

        monkeypatch.setattr(store, "records", records_while_another_deletes)
        assert [facts.id for facts in store.facts()] == ["run-002"]


def test_facts_of_another_version_in_a_store_that_cannot_be_written_are_left_out(sqlite_url, run_number):
    with Store(sqlite_url) as store:
        store.add(run_number(1))
        store.add(run_number(2))
        with store.writing() as connection:
            connection.execute(
                sa.text("UPDATE run_facts SET version = 0, document = '[]' WHERE run_id = 'run-001'")
            )
    with Store(f"sqlite:///file:{sqlite_url.removeprefix('sqlite:///')}?mode=ro&uri=true") as store:
        assert [facts.id for facts in store.facts()] == ["run-002"]


def test_facts_of_an_older_version_are_made_anew_and_a_run_that_cannot_be_read_has_none(url, run_number, records):
    with Store(url) as store:
        for number in range(3):
            store.add(run_number(number), records)
    with Store(url) as store, store.writing() as connection:
        connection.execute(sa.text("DELETE FROM run_facts WHERE run_id = 'run-000'"))
        connection.execute(sa.text("UPDATE run_facts SET version = 0, document = '[]' WHERE run_id = 'run-001'"))
        connection.execute(sa.text("UPDATE run_facts SET version = 0 WHERE run_id = 'run-002'"))
        connection.execute(sa.text("UPDATE runs SET document = '{}' WHERE id = 'run-002'"))
    with Store(url) as store:
        assert [facts.id for facts in store.facts()] == ["run-001", "run-000"]
        assert store.facts() is store.facts()
        assert len(store.samples(["run-001"])["run-001"]) == len(records)
