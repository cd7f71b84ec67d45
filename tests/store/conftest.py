"""Databases and records for the tests of the store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import sqlalchemy as sa

from service.settings import Fsync
from service.store import PredictionRecord, Store
from service.store.journal import JournalBacklog
from service.store.reference import Model
from tests.store.harness import create
from tests.store.journals import MODEL, OpenJournal

LABELS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")

MakeRecord = Callable[..., PredictionRecord]
OpenStore = Callable[..., Store]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'predictions.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """A connection pool beside the store's own, to look at what it wrote."""
    engine = create(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def make_record() -> MakeRecord:
    """Makes records that differ from each other; keyword arguments replace fields."""
    numbers = itertools.count()

    def make(**fields: Any) -> PredictionRecord:
        number = next(numbers)
        values: dict[str, Any] = {
            "prediction_id": uuid4(),
            "emotion": LABELS[number % len(LABELS)],
            "confidence": 0.4,
            "probabilities": (0.1, 0.1, 0.1, 0.4, 0.1, 0.1, 0.1),
            "processing_ms": 1.2345,
            "timestamp": datetime.now(UTC),
            "source_ip": "192.0.2.7",
            "request_id": None,
            "user": None,
            "face_index": 0,
            "face_box": None,
            "detection_score": None,
        }
        return cast(PredictionRecord, values | fields)

    return make


@pytest.fixture
def open_store(database_url: str) -> Iterator[OpenStore]:
    """Opens stores on the test's database, and closes those that the test leaves open."""
    stores: list[Store] = []

    def open_one(**arguments: Any) -> Store:
        defaults: dict[str, Any] = {
            "url": database_url,
            "labels": LABELS,
            "version_tag": "v1.0.0",
            "model_filename": "emotion.onnx",
        }
        store = Store.open(**defaults | arguments)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close(timeout=5)


@pytest.fixture
def open_journal(tmp_path: Path) -> Iterator[OpenJournal]:
    """Opens journals in the test's folder; those left open are closed."""
    opened: list[JournalBacklog] = []

    def open_one(model: Model = MODEL, *, root: Path = tmp_path, **arguments: int | Fsync) -> JournalBacklog:
        backlog = JournalBacklog(root, model, **arguments)  # type: ignore[arg-type]
        opened.append(backlog)
        return backlog

    yield open_one
    for backlog in opened:
        backlog.close()
