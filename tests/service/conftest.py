"""A service in this process, on a port of its own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from service.engine import Engine
from service.faces import FaceDetector
from service.images import ImageFile
from service.network.connection import Connection
from service.processes.cells import SharedCells
from service.protocol import requests as protocol
from service.security.perimeter import Perimeter
from service.server import Service
from service.settings import Settings
from service.store import Store
from service.store.queries import Queries
from service.telemetry.metrics import Metrics
from tests.contract import check_reply, check_request
from tests.service.doubles import HeldEngine
from tests.service.harness import MODEL, TIMEOUT, Running, Serve


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The converted stand-in model."""
    return Engine(MODEL)


@pytest.fixture
def held(engine: Engine) -> Iterator[HeldEngine]:
    """Released at the end, whatever happened: the executor's thread must not stay behind."""
    engine = HeldEngine(engine)
    yield engine
    engine.released.set()


@pytest.fixture(autouse=True)
def _described(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every reply of a service in this process fits docs/asyncapi.yaml, and so does every request that it accepts."""
    write, parse_frame, changed = Connection._write, protocol.parse_frame, protocol.Options.changed
    misfits: list[jsonschema.ValidationError] = []

    def checked_write(connection: Connection, reply: bytes) -> None:
        try:
            check_reply(reply)
        except jsonschema.ValidationError as error:
            misfits.append(error)
        write(connection, reply)

    def fits(frame: str | ImageFile) -> None:
        try:
            check_request(frame)
        except jsonschema.ValidationError as error:
            misfits.append(error)

    def checked_parse_frame(frame: str | ImageFile) -> Any:
        request = parse_frame(frame)
        if not isinstance(request, protocol.Configure):
            fits(frame)
        return request

    def checked_changed(options: protocol.Options, changes: Mapping[str, Any]) -> protocol.Options:
        changed_options = changed(options, changes)
        fits(orjson.dumps({"command": "configure", **changes}).decode())
        return changed_options

    monkeypatch.setattr(Connection, "_write", checked_write)
    monkeypatch.setattr(protocol, "parse_frame", checked_parse_frame)
    monkeypatch.setattr(protocol.Options, "changed", checked_changed)
    yield
    if misfits:
        raise misfits[0]


@pytest.fixture
def database(tmp_path: Path) -> str:
    """The URL of an SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def serve(engine: Engine, detector: FaceDetector, database: str) -> Serve:
    """Run a service on a free port, with settings of one's own."""

    @asynccontextmanager
    async def running(model: Engine = engine, **settings: Any) -> AsyncIterator[Running]:
        card = model.card
        store = Store.open(
            database, labels=card.labels, version_tag=card.version_tag, model_filename=card.path.name
        )
        # However slow the machine is, nobody is told to come again for the wait.
        chosen = replace(Settings(database_url=database, max_wait_ms=1e9), **settings)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            try:
                shared = SharedCells(1)
                metrics = Metrics(card.labels, shared, 0, [card.version_tag])
                perimeter = Perimeter(chosen, shared, 0, metrics.refused)
                service = Service(chosen, model, store, metrics, detector, perimeter)
                async with service.running([listener]):
                    yield Running(service, port)
            finally:
                assert await asyncio.to_thread(store.close, TIMEOUT) == 0

    return running


@pytest.fixture
async def running(serve: Serve) -> AsyncIterator[Running]:
    """A service with the settings that `serve` has by itself."""
    async with serve() as started:
        yield started


@pytest.fixture
async def release(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """Questions to the database have no answer before this is set."""
    release, submit, loop = asyncio.Event(), Queries.submit, asyncio.get_running_loop()

    def slow(queries: Queries, read: Callable[[Any], bytes], request_id: Any) -> Any:
        def held(connection: Any) -> bytes:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(TIMEOUT)
            return read(connection)

        return submit(queries, held, request_id)

    monkeypatch.setattr(Queries, "submit", slow)
    yield release
    release.set()
