from __future__ import annotations

import pytest
import sqlalchemy as sa

from mcp_core.decision import store as store_module
from mcp_core.decision.database import open_engine
from mcp_core.decision.migrations import MIGRATIONS, migrate, schema_version
from mcp_core.decision.store import Store
from mcp_core.errors import StoreError


@pytest.fixture
def engine(url):
    made = open_engine(url)
    yield made
    made.dispose()


def test_an_old_file_is_upgraded_and_keeps_its_runs(engine, url, run_number):
    migrate(engine, MIGRATIONS[:1])
    run = run_number(1)
    row = dict.fromkeys(("status", "recipe_fingerprint", "load_key", "workload_fingerprint", "title"), "old") | {
        "id": run.id,
        "created": run.created.isoformat(),
        "document": run.model_dump_json(),
    }
    with engine.begin() as connection:
        assert schema_version(connection) == 1
        assert not sa.inspect(connection).has_table("telemetry")
        columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
        connection.execute(sa.text(f"INSERT INTO runs ({columns}) VALUES ({values})"), row)
    with Store(url) as store:
        assert store.list() == (run,)
        store.add(run_number(2), telemetry=[1, 2])
        assert store.telemetry("run-002") == [1, 2]
    with engine.connect() as connection:
        assert schema_version(connection) == len(MIGRATIONS)


def test_migrating_again_changes_nothing(engine):
    migrate(engine)
    before = sa.inspect(engine).get_table_names()
    migrate(engine)
    assert sa.inspect(engine).get_table_names() == before
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM schema_version")).scalar() == len(MIGRATIONS)


def test_a_failing_migration_leaves_the_store_as_it_was(url):
    def breaks(connection):
        connection.execute(sa.text("CREATE TABLE half (id INTEGER)"))
        raise RuntimeError("planted")

    with Store(url) as store:
        with pytest.raises(RuntimeError, match="planted"):
            migrate(store._engine, (*MIGRATIONS, breaks))
        with store._engine.connect() as connection:
            assert schema_version(connection) == len(MIGRATIONS)
            assert not sa.inspect(connection).has_table("half")


def test_a_store_of_a_newer_mcp_is_refused(engine, url):
    migrate(engine, (*MIGRATIONS, lambda connection: None))
    with pytest.raises(
        StoreError, match=rf"version {len(MIGRATIONS) + 1}; this MCP knows versions up to {len(MIGRATIONS)}\."
    ) as caught:
        Store(url)
    assert "Update MCP" in caught.value.hint


def test_migrated_columns_are_the_ones_that_the_store_uses(engine):
    migrate(engine)
    inspector = sa.inspect(engine)
    for table in store_module._metadata.tables.values():
        assert {column["name"] for column in inspector.get_columns(table.name)} == set(table.columns.keys())
