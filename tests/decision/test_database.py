"""PostgreSQL beside SQLite: addresses, errors without the password, several writers. On a real server."""

from __future__ import annotations

import subprocess
import sys
import threading

import psycopg
import pytest
import sqlalchemy as sa

from mcp_core import cli
from mcp_core.decision import fact_tables
from mcp_core.decision.store import Store
from mcp_core.errors import StoreError
from mcp_core.results import Mean
from tests import postgres_server as postgres


@pytest.fixture
def server(postgres_server):
    return postgres_server


@pytest.fixture
def address(server):
    return server.fresh_url()


def refused(url: str) -> StoreError:
    """The error of a Store there; in one line, with a hint, and without the password."""
    with pytest.raises(StoreError) as caught:
        Store(url)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert postgres.PASSWORD not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("changes", "cause", "hint"),
    [
        ({"password": "wr0ng"}, "password authentication failed", "user and password"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist', "createdb"),
        ({"port": 1}, "Connection refused", "the server runs"),
        ({"host": "nowhere.invalid"}, "resolve host", "the server runs"),
        ({"query": {"nonsense": "1"}}, "invalid connection option", "libpq"),
    ],
)
def test_what_is_wrong_with_the_address_is_said(server, changes, cause, hint):
    error = refused(server.url(**changes))
    assert cause in error.message
    assert hint in error.hint
    assert "wr0ng" not in str(error)


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://postgres:{postgres.PASSWORD}/runs",  # no host: the password stands where a port would
        f"postgresql://postgres:a@{postgres.PASSWORD}@127.0.0.1/runs",  # an @ in it
        f"postgres:{postgres.PASSWORD}@127.0.0.1/runs",
        f"mysql://postgres:{postgres.PASSWORD}@127.0.0.1/runs",
        f"postgresql+psycopg2://postgres:{postgres.PASSWORD}@127.0.0.1/runs",
        f"postgresql://postgres@127.0.0.1:1/runs?password={postgres.PASSWORD}",
    ],
)
def test_an_address_that_is_none_repeats_no_password(url):
    assert "MCP_STORE_URL" in refused(url).hint


def test_without_its_driver_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "'.[postgres]'" in refused(f"postgresql://me:{postgres.PASSWORD}@127.0.0.1/runs").hint


def test_the_commands_say_it_in_two_lines(monkeypatch, capsys):
    monkeypatch.setenv("MCP_STORE_URL", f"postgresql://me:{postgres.PASSWORD}@127.0.0.1:1/runs")
    assert cli.main(["runs"]) == 1
    said = capsys.readouterr().err
    assert [line.partition(":")[0] for line in said.splitlines()] == ["error", "hint"]
    assert "postgresql+psycopg://me:***@127.0.0.1:1/runs" in said
    assert postgres.PASSWORD not in said


def test_commands_work_on_it(address, monkeypatch, capsys, run_number):
    monkeypatch.setenv("MCP_STORE_URL", address.replace("postgresql:", "postgres:"))
    with Store() as store:
        store.add(run_number(1))
    assert cli.main(["runs"]) == 0
    assert "run-001" in capsys.readouterr().out
    assert cli.main(["doctor"]) == 0
    assert "(1 Runs)" in (said := capsys.readouterr().out)
    assert postgres.PASSWORD not in said


def test_a_user_who_may_not_make_tables_is_told(server, address):
    database = address.rsplit("/", 1)[1]
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE guest LOGIN PASSWORD '{postgres.PASSWORD}'")
    error = refused(server.url(database, username="guest"))
    assert "permission denied" in error.message
    assert "database of its own" in error.hint


def test_a_server_that_only_reads_loses_no_run(home, address, run_number):
    with Store(address) as store:
        store.add(run_number(1))
    with Store(f"{address}?options=-c%20default_transaction_read_only%3Don") as store:
        assert store.list() == (run_number(1),)
        with pytest.raises(StoreError, match="read-only") as caught:
            store.add(run_number(2))
    assert "can be written" in caught.value.hint
    assert (home / "unsaved" / "run-002.json").exists()


def test_a_server_that_was_restarted_is_met_again(server, address, run_number):
    with Store(address) as store:
        store.add(run_number(1))
        with psycopg.connect(server.url(), autocommit=True) as connection:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
            connection.execute(others, [address.rsplit("/", 1)[1]])
        assert store.count() == 1


def test_a_server_that_ends_is_an_error_with_a_hint(run_number):
    programs = postgres.binaries()
    if programs is None:
        pytest.skip(postgres.MISSING)
    with postgres.running(programs) as own, Store(own.fresh_url()) as store:
        store.add(run_number(1))
        own.stop()
        with pytest.raises(StoreError) as caught:
            store.count()
        assert "the server runs" in caught.value.hint


def test_one_key_written_by_many_at_once_is_there_once(url):
    """What is deleted and written anew must not fail because another did the same between."""
    stores = [Store(url) for _ in range(4)]
    failed: list[BaseException] = []

    def write(store: Store) -> None:
        try:
            for number in range(20):
                store.keep_noise_floor("reference", Mean(mean=float(number), se=0.0))
        except StoreError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert stores[0].noise_floor("reference") == Mean(mean=19.0, se=0.0)
    for store in stores:
        store.close()


def test_news_of_a_host_whose_clock_is_behind_is_seen(url, run_number):
    with Store(url) as ours, Store(url) as theirs:
        theirs.add(run_number(1))
        with theirs.writing() as connection:
            connection.execute(sa.text("UPDATE run_facts SET written = '2999-01-01T00:00:00.000000+00:00'"))
        assert ours.facts()[0].status == "failed"
        theirs.add(run_number(1).model_copy(update={"status": "cancelled"}))
        assert ours.facts()[0].status == "cancelled"


def test_a_writer_that_was_killed_holds_nobody_up(address, run_number):
    hold = (
        "import sys\nfrom mcp_core.decision.store import Store\n"
        "with Store(sys.argv[1]).writing():\n print('holds', flush=True)\n sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", hold, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        holder.kill()
    with Store(address) as store:
        store.add(run_number(1))
        assert store.count() == 1


def test_samples_of_very_many_runs_are_asked_for_in_one_call(url):
    with Store(url) as store, store.reading() as connection:
        assert fact_tables.read_samples(connection, [f"run-{number}" for number in range(25_000)]) == {}
