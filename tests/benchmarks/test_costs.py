"""What one request costs: by the CPU time of all that a server has run."""

from __future__ import annotations

import psutil
import sqlalchemy as sa

from benchmarks.costs import server_of
from benchmarks.persistence import started_postgresql
from service.store.database import parse_url
from tests.benchmarks.harness import TIMEOUT


def test_what_a_connection_to_the_database_used_is_counted_after_its_end() -> None:
    """It has a process of its own, as what vacuums has, which would take its time along."""
    with started_postgresql() as url:
        engine = sa.create_engine(parse_url(url), poolclass=sa.NullPool)
        with engine.connect() as connection:
            process = psutil.Process(connection.scalar(sa.text("SELECT pg_backend_pid()")))
            connection.execute(sa.text("SELECT count(*) FROM generate_series(1, 3000000)"))
            used = sum(process.cpu_times()[:2])
        process.wait(TIMEOUT)
        assert (server_of(url).cpu_seconds() or 0) >= used
