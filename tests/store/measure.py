"""What storing costs: ``python -m tests.store.measure`` from the root of the repository."""

from __future__ import annotations

import argparse
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from uuid import UUID

import psycopg2.extras  # type: ignore[import-untyped]
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from service.settings import Fsync
from service.store import PredictionRecord, Store, reference
from service.store.database import create_engine, create_file, parse_url
from service.store.insert import insert, sqlite_rows, sqlite_statement
from service.store.migrate import migrate
from service.store.prediction_ids import PredictionIds
from service.store.records import encode
from service.store.reference import Model
from service.store.schema import predictions_log
from tests.conftest import PostgresServer
from tests.store.conftest import LABELS

MODEL = Model("v1", "emotion.onnx", LABELS)
BATCH = 200
#: What 64 connections make, in turns: where in its index a row's id belongs decides how many pages a batch changes.
IDS = cycle([PredictionIds() for _ in range(64)])


def record() -> PredictionRecord:
    """A record as a whole image gives it."""
    probabilities = (0.0123456789, 0.0023456789, 0.1123456789, 0.8123456789, 0.0323456789, 0.0183456789, 0.01)
    return {
        "prediction_id": next(IDS).next(),
        "emotion": "happy",
        "confidence": 0.8123456789,
        "probabilities": probabilities,
        "processing_ms": 1.234,
        "timestamp": datetime.now(UTC),
        "source_ip": "192.0.2.7",
        "request_id": "camera-7",
        "user": None,
        "face_index": 0,
        "face_box": None,
        "detection_score": None,
    }


def measure_record(folder: Path) -> None:
    """Median and 99th percentile of one call of ``record``, in µs."""
    policies: tuple[Fsync | None, ...] = (None, "never", "interval", "always")
    for policy in policies:
        for size in (1, 4, 8):
            store = Store.open(
                f"sqlite:///{folder / 'record.db'}",
                labels=LABELS,
                version_tag="v1",
                model_filename="emotion.onnx",
                journal_dir=folder / "journal" if policy else None,
                fsync=policy or "never",
            )
            times = []
            for _ in range(300 if policy == "always" else 3000):
                batch = [record() for _ in range(size)]
                began = time.perf_counter()
                assert store.record(batch)
                times.append((time.perf_counter() - began) * 1e6)
            store.close(timeout=60)
            cuts = statistics.quantiles(times, n=100)
            name = f"fsync={policy}" if policy else "no journal"
            print(f"record  {name:15} {size} records   p50 {cuts[49]:6.1f} µs   p99 {cuts[98]:7.1f} µs")


@contextmanager
def rival() -> Iterator[None]:
    """Beside it a thread does what an event loop does: it wants the interpreter's lock, and gives it up for sockets."""
    ended = threading.Event()
    here, there = socket.socketpair()

    def run() -> None:
        while not ended.is_set():
            here.send(bytes(200))
            there.recv(200)
            sum(range(300))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        here.close()
        there.close()


def measure_insert(url: str, batches: int) -> None:
    """CPU of this thread and elapsed time per row, in µs, for our statement and for the usual ways, alone and beside a
    rival for the interpreter's lock."""
    create_file(parse_url(url))
    engine = create_engine(parse_url(url), undo_in_memory=True)
    migrate(engine)
    with engine.begin() as connection:
        references = reference.ensure(connection, MODEL, {})

    def ours(connection: sa.Connection, rows: list[PredictionRecord]) -> None:
        insert(connection, references, [encode(rows)])

    def values(row: PredictionRecord) -> dict[str, object]:
        return {
            "prediction_uuid": UUID(str(row["prediction_id"])),
            "emotion_id": references.emotion_ids[row["emotion"]],
            "model_id": references.model_id,
            "confidence": row["confidence"],
            "probabilities": row["probabilities"],
            "processing_time_ms": round(row["processing_ms"]),
            "processing_us": round(row["processing_ms"] * 1000),
            "timestamp": row["timestamp"],
            "source_ip": row["source_ip"],
            "request_id": row["request_id"],
        }

    statement = postgresql.insert(predictions_log).on_conflict_do_nothing()

    def core(connection: sa.Connection, rows: list[PredictionRecord]) -> None:
        connection.execute(statement, [values(row) for row in rows])

    def execute_values(connection: sa.Connection, rows: list[PredictionRecord]) -> None:
        psycopg2.extras.register_uuid()
        items = [values(row) | {"probabilities": psycopg2.extras.Json(row["probabilities"])} for row in rows]
        cursor = connection.connection.cursor()
        sql = f"INSERT INTO predictions_log ({', '.join(items[0])}) VALUES %s ON CONFLICT DO NOTHING"
        psycopg2.extras.execute_values(cursor, sql, [tuple(item.values()) for item in items], page_size=BATCH)

    def executemany(connection: sa.Connection, rows: list[PredictionRecord]) -> None:
        connection.exec_driver_sql(sqlite_statement(1), sqlite_rows(references, encode(rows)))

    ways = {"ours": ours, "SQLAlchemy": core}
    if engine.dialect.name == "postgresql":
        ways["execute_values"] = execute_values
    else:
        ways["executemany"] = executemany
    for name, way in ways.items():
        for beside in (nullcontext, rival):
            cpu = elapsed = 0.0
            for _ in range(batches):
                rows = [record() for _ in range(BATCH)]
                with beside():
                    used, began = time.thread_time(), time.perf_counter()
                    with engine.begin() as connection:
                        way(connection, rows)
                    cpu += time.thread_time() - used
                    elapsed += time.perf_counter() - began
            each = 1e6 / (batches * BATCH)
            print(
                f"insert  {engine.dialect.name:10} {name:15} {'beside another' if beside is rival else 'alone':15}"
                f" CPU {cpu * each:6.1f} µs   elapsed {elapsed * each:6.1f} µs"
            )
    engine.dispose()


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure_record(Path(folder))
        measure_insert(f"sqlite:///{folder}/insert.db", arguments.batches)
    server = PostgresServer()
    try:
        measure_insert(server.url(server.create_database()), arguments.batches)
    finally:
        server.close()


if __name__ == "__main__":
    main()
