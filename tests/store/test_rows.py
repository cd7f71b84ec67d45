"""Rows that somebody deletes or numbers under a running service: what is acknowledged is stored, or waits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from service.store.database import parse_url
from service.store.schema import model_version
from tests.store.conftest import MakeRecord, OpenStore
from tests.store.harness import PATIENCE_S, eventually, execute, ids, stored_by_id

if TYPE_CHECKING:
    from tests.conftest import PostgresServer


def test_rows_that_somebody_numbered(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """Rows that were imported with their numbers cost no prediction its place."""
    store = open_store()
    execute(engine, *(f"INSERT INTO predictions_log (predic_id) VALUES ({n})" for n in range(1, 51)))
    records = [make_record() for _ in range(20)]
    assert store.record(records)
    assert store.close(timeout=PATIENCE_S) == 0
    assert stored_by_id(engine) == ids(records)


def test_a_unique_key_of_the_operators_own(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """A record that collides with another in what is no key of ours is not taken for stored: it waits."""
    store = open_store()
    execute(engine, "CREATE UNIQUE INDEX mine ON predictions_log (request_id)")
    records = [make_record(request_id="same") for _ in range(2)]
    assert store.record(records)
    eventually(lambda: not store.status().writing)
    assert store.status().pending == 2
    execute(engine, "DROP INDEX mine")
    eventually(lambda: store.status().written == 2)
    assert stored_by_id(engine) == ids(records)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("refused", [0, 1])
def test_a_sequence_at_its_end(
    open_store: OpenStore,
    make_record: MakeRecord,
    postgres_server: PostgresServer,
    postgres_url: str,
    refused: int,
) -> None:
    """That PostgreSQL has no more numbers for rows is no fault of the records: they wait until it has, also where one
    among them is refused for a value.
    """
    name = parse_url(postgres_url).database or ""
    store = open_store(url=postgres_url)
    sequence = "ALTER SEQUENCE predictions_log_predic_id_seq"
    postgres_server.execute(f"{sequence} MAXVALUE 3", name)
    wrong = [make_record(face_index=1_000_000) for _ in range(refused)]
    assert store.record([*wrong, *(make_record() for _ in range(20))])
    eventually(lambda: not store.status().writing)
    assert store.status().rejected == 0
    postgres_server.execute(f"{sequence} NO MAXVALUE", name)
    assert store.close(timeout=PATIENCE_S) == 0
    assert postgres_server.execute("SELECT count(*) FROM predictions_log", name) == [(20,)]
    assert store.status().rejected == refused


@pytest.mark.parametrize("active", [True, False])
def test_a_version_that_is_deleted_while_it_is_served(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord, active: bool
) -> None:
    """It is made again as it was: the active one, or a canary beside it."""
    store = open_store(active=active)
    execute(engine, "DELETE FROM model_version")
    assert store.record([make_record()])
    eventually(lambda: store.status().written == 1)
    with engine.connect() as connection:
        assert connection.execute(sa.select(model_version.c.model_status)).scalars().all() == [
            "01" if active else "00"
        ]


def test_an_older_version_that_is_deleted_while_it_drains(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """It is made again beside the newer one, which stays the active one."""
    store = open_store(version_tag="v1")
    open_store(version_tag="v2")
    execute(engine, "DELETE FROM model_version WHERE model_version_tag = 'v1'")
    assert store.record([make_record()])
    eventually(lambda: store.status().written == 1)
    columns = model_version.c
    with engine.connect() as connection:
        rows = connection.execute(sa.select(columns.model_version_tag, columns.model_status))
        assert {row.model_version_tag: row.model_status for row in rows} == {"v1": "00", "v2": "01"}


def test_a_version_that_is_deleted_when_a_newer_release_has_migrated(
    open_store: OpenStore, engine: sa.Engine, make_record: MakeRecord
) -> None:
    """While replicas are replaced one by one those that are left are of the older: they make it again, and store."""
    store = open_store()
    execute(engine, "UPDATE alembic_version SET version_num = '9999'", "DELETE FROM model_version")
    assert store.record([make_record()])
    eventually(lambda: store.status().written == 1)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # not used
def test_a_version_that_is_deleted_beside_a_record_that_is_refused(
    open_store: OpenStore, make_record: MakeRecord, postgres_server: PostgresServer
) -> None:
    """It is made again, as beside records that are all taken, and what can be stored is."""
    postgres_server.execute(
        "CREATE DATABASE test_latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    store = open_store(url=postgres_server.url("test_latin"))
    postgres_server.execute("DELETE FROM model_version", "test_latin")
    assert store.record([make_record(), make_record(request_id="山")])
    assert store.close(timeout=PATIENCE_S) == 0
    assert (store.status().written, store.status().rejected) == (1, 1)
    postgres_server.drop_database("test_latin")
