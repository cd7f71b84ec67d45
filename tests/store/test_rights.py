"""What PostgreSQL lets a user do, and for how long: what is needed of it, and what is said where it is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.store import PredictionRecord, Store
from service.store.database import create_engine, parse_url
from tests.conftest import PostgresServer
from tests.store.harness import eventually, ids
from tests.store.test_migrate import execute

MakeRecord = Callable[..., PredictionRecord]
OpenStore = Callable[..., Store]

SECURITY = Path(__file__).parents[2] / "SECURITY.md"


@pytest.fixture
def database_url(postgres_url: str) -> str:
    """Only PostgreSQL has users."""
    return postgres_url


@pytest.fixture
def user_url(postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
    """The URL of the same database for a user who owns nothing in it."""
    postgres_server.execute("CREATE ROLE visionai LOGIN")
    yield postgres_url.replace("postgres:@", "visionai@")
    engine = create_engine(parse_url(postgres_url))
    execute(engine, "DROP OWNED BY visionai")
    engine.dispose()
    postgres_server.execute("DROP ROLE visionai")


def test_the_rights_that_the_documentation_lists_are_enough(
    open_store: OpenStore, make_record: MakeRecord, engine: sa.Engine, user_url: str
) -> None:
    """Migrated by the owner, a user with what SECURITY.md grants starts, stores, and numbers behind imported rows."""
    assert open_store().close(timeout=10) == 0
    (grants,) = re.findall(r"```sql\n(.*?)```", SECURITY.read_text(), re.DOTALL)
    execute(engine, grants.strip().rstrip(";"), "INSERT INTO predictions_log (predic_id) VALUES (500)")
    store = open_store(url=user_url, version_tag="v2.0.0", labels=("happy", "bored"))
    records = [make_record(emotion="bored"), make_record(emotion="happy")]
    assert store.record(records)
    eventually(lambda: store.status().written == 2)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT prediction_uuid FROM predictions_log WHERE predic_id > 500")
        assert {row[0] for row in rows} == ids(records)
