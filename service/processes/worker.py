"""One worker process: loads the model, opens the store, serves until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from service import __version__
from service.canary import Version, check_versions, of_canary
from service.emotions import DESCRIPTIONS
from service.engine import Engine
from service.errors import EXIT_CANNOT_START, StartupError, as_utf8, telling_missing_packages
from service.faces import FaceDetector
from service.modelfile import check_source, resolve_detectors, resolve_model
from service.network.listening import most_connections
from service.network.newcomers import Newcomers
from service.processes.apart import Progress
from service.processes.cells import SharedCells
from service.security.perimeter import Perimeter
from service.server import BACKLOG, Service
from service.settings import Settings
from service.store import Store, StoreStatus, check_journal, prepare
from service.telemetry.logs import silence_native_libraries
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import start_tracing

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as _Pipe
else:
    from multiprocessing.connection import Connection as _Pipe

Pipe: TypeAlias = _Pipe

log = logging.getLogger(__name__)

# What a worker is told through the pipe, besides what it tells: `Ready`, or why it cannot start.
STOP = "stop"

EXIT_OK = 0
EXIT_FAILED = 1

_SWITCH_SECONDS = 0.0005


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker serves: which versions, and what they tell apart."""

    version_tag: str
    canary_tag: str | None
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """What is served already where a successor starts: what the model tells apart, and where predictions go."""

    labels: tuple[str, ...]
    database_url: str = field(repr=False)
    journal_dir: Path | None


def load_engine(settings: Settings) -> Engine:
    """The model that MODEL_PATH means.

    Raises:
        StartupError: there is none that may be served.
    """
    assert settings.provider != "auto", "calibration has chosen one by now"
    engine = Engine(
        resolve_model(settings.model_path), settings.provider, settings.threads, max(1, settings.executors)
    )
    check_source(settings.model_path, engine.card.path, engine.card.source_sha256)
    return engine


def load_canary(settings: Settings, active: Engine) -> Engine | None:
    """The model that CANARY_MODEL_PATH means, to be served beside the active one; None where it is not set.

    Raises:
        StartupError: it may not be served, or not beside this one.
    """
    if settings.canary_model_path is None:
        return None
    try:
        canary = load_engine(replace(settings, model_path=settings.canary_model_path))
    except StartupError as exc:
        raise of_canary(exc) from None
    check_versions(active, canary)
    return canary


def load_detector(settings: Settings, engine: Engine) -> FaceDetector:
    """The face detector, whose files `make convert` builds.

    Raises:
        StartupError: a file is missing or wrong.
    """
    return FaceDetector(*resolve_detectors(engine.card.path), settings.small_faces)


def load_models(settings: Settings) -> tuple[Engine, Engine | None, FaceDetector]:
    """All that a worker serves: the active model, the canary, and the detector.

    Raises:
        StartupError: one of them may not be served.
    """
    engine = load_engine(settings)
    return engine, load_canary(settings, engine), load_detector(settings, engine)


def check_startable(settings: Settings) -> None:
    """Make what a worker makes, but for the database, in a process that ends after it.

    Raises:
        StartupError: a worker could not start.
    """
    load_models(settings)
    Perimeter(settings, SharedCells(1), 0, lambda _: None)
    start_tracing(__version__)
    check_journal(settings.journal_dir)


def open_store(
    settings: Settings,
    engine: Engine,
    *,
    during_outage: bool = False,
    new_journal: bool = False,
    active: bool = True,
) -> Store:
    """The database, migrated, with the rows that this model's predictions point to.

    It becomes the active one there, unless `active` is false; that one's store also does what is done once.

    Raises:
        StartupError: it cannot be used; with `during_outage`, a database that does not answer is waited for, and so is
            a journal that cannot be written, unless it is a new one.
    """
    card = engine.card
    return Store.open(
        settings.database_url,
        labels=card.labels,
        version_tag=card.version_tag,
        model_filename=as_utf8(card.path.name),
        descriptions=DESCRIPTIONS["es"],
        journal_dir=settings.journal_dir,
        fsync=settings.journal_fsync,
        private=settings.store_private,
        retention_days=settings.retention_days or None if active else None,
        during_outage=during_outage,
        new_journal=new_journal,
        active=active,
    )


def prepare_database(settings: Settings, _: Progress) -> None:
    """What opening a store does to the database, without one: nothing is served yet. To be run apart.

    Raises:
        StartupError: it cannot be used, or the model may not be served.
    """
    card = load_engine(replace(settings, provider="cpu", threads=1, executors=0)).card
    prepare(
        settings.database_url,
        labels=card.labels,
        version_tag=card.version_tag,
        model_filename=as_utf8(card.path.name),
        descriptions=DESCRIPTIONS["es"],
    )


def _open_stores(settings: Settings, engines: Sequence[Engine], served: Served | None) -> list[Store]:
    """One for each version, the active one's first."""
    same_database = served is not None and served.database_url == settings.database_url
    new_journal = served is not None and served.journal_dir != settings.journal_dir
    stores: list[Store] = []
    try:
        # The active one's last: where the canary cannot be stored the version that is served stays the active one.
        for engine in reversed(engines):
            active = engine is engines[0]
            store = open_store(
                settings, engine, during_outage=same_database, new_journal=new_journal, active=active
            )
            stores.insert(0, store)
    except StartupError:
        _close_stores(stores, 0.0)
        raise
    return stores


def _close_stores(stores: Sequence[Store], timeout: float) -> int:
    """Within one timeout for all; the number of predictions that are not stored yet."""
    deadline = time.monotonic() + timeout
    return sum(store.close(timeout=max(0.0, deadline - time.monotonic())) for store in stores)


def run_worker(
    settings: Settings,
    sockets: Sequence[socket.socket],
    shared: SharedCells,
    row: int,
    pipe: Pipe,
    served: Served | None = None,
) -> int:
    """Serve these bound sockets. Returns the exit code.

    `served` is None for the first workers. A successor's model must have the same labels: clients hold the list of
    emotions, and the metrics count by it. And it does not wait for the same database, or journal: its predecessor would
    not have either.

    Sends through `pipe` either `Ready` or, as text, why it cannot start. Stops when it is
    told so through the pipe, when the other end is closed (the supervisor is gone then, however it ended), and on
    SIGTERM. What comes a second time by the same way hurries. While it loads it ends at once instead, also where it
    waits for a database that is locked.
    """
    silence_native_libraries()
    try:
        with _ending_with(pipe), telling_missing_packages():
            engine, canary_engine, detector = load_models(settings)
            if served is not None and engine.card.labels != served.labels:
                raise StartupError(
                    f"{engine.card.path} answers {', '.join(engine.card.labels)} and the model that is served "
                    f"{', '.join(served.labels)}: that needs a restart"
                )
            engines = [engine] if canary_engine is None else [engine, canary_engine]
            metrics = Metrics(engine.card.labels, shared, row, [each.card.version_tag for each in engines])
            perimeter = Perimeter(settings, shared, row, metrics.refused)
            tracing = start_tracing(__version__)
            stores = _open_stores(settings, engines, served)
    except StartupError as exc:
        _tell(pipe, str(exc))
        return EXIT_CANNOT_START
    canary = None
    if canary_engine is not None:
        canary = Version(canary_engine, stores[1], settings.canary_percent / 100, active=False)
    make_service = partial(
        Service, settings, engine, stores[0], metrics, detector, perimeter, tracing, canary
    )
    ready = Ready(
        engine.card.version_tag,
        None if canary_engine is None else canary_engine.card.version_tag,
        engine.card.labels,
    )
    try:
        with _runner(settings, shared, row, metrics) as runner:
            return runner.run(_serve(make_service, ready, sockets, pipe))
    finally:
        if tracing is not None:
            tracing.close()
        if lost := _close_stores(stores, settings.drain_seconds):
            log.error("stopped with %d predictions that are not stored yet", lost)
        status = StoreStatus.together([store.status() for store in stores])
        metrics.stored(status.written, status.rejected)
        metrics.spent(time.process_time())


@contextmanager
def _ending_with(pipe: Pipe) -> Iterator[None]:
    """Meanwhile the process ends at once when the other end of the pipe is closed: the event loop does not listen yet.

    On Windows it ends once it listens.
    """
    if sys.platform == "win32":
        yield
        return
    over, over_end = os.pipe()
    ends = select.poll()
    # Nothing is said to a worker that loads: what can be read is the end. macOS tells that only of what is asked for.
    ends.register(pipe.fileno(), select.POLLIN)
    ends.register(over, select.POLLIN)

    def wait() -> None:
        if pipe.fileno() in dict(ends.poll()):
            os._exit(EXIT_FAILED)  # whatever the main thread waits for; nothing was begun that is not undone

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(over_end)
        thread.join()
        os.close(over)


def _tell(pipe: Pipe, word: Ready | str) -> None:
    # Where the supervisor is gone nobody is to be told; that it is, is heard at this end of the pipe.
    with suppress(BrokenPipeError):
        pipe.send(word)


def _runner(settings: Settings, shared: SharedCells, row: int, metrics: Metrics) -> asyncio.Runner:
    if sys.platform == "win32":
        return asyncio.Runner()  # there is one worker, and no limit of files; nobody is dropped to make room
    from service.network.accept import SharingLoop, Turns

    # As many as wait to be accepted, or as may be connected, come at once after an interruption.
    newcomers = Newcomers(max(BACKLOG, settings.max_connections), partial(metrics.refused, "handshake_limit"))
    return asyncio.Runner(loop_factory=lambda: SharingLoop(Turns(shared, row), newcomers, most_connections()))


async def _serve(
    make_service: Callable[[], Service], ready: Ready, sockets: Sequence[socket.socket], pipe: Pipe
) -> int:
    loop = asyncio.get_running_loop()
    service = make_service()
    heard: set[str] = set()

    def stop(way: str) -> None:
        # A signal to the whole process group, as of `timeout` or an init script, comes here itself, and by the pipe
        # from the supervisor, which has heard it too: that is one.
        if way in heard:
            service.hurry()
        heard.add(way)
        service.stop()

    def hear() -> None:
        try:
            pipe.recv()
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
        stop("pipe")

    if sys.platform == "win32":
        # Its event loop watches no pipes; a thread that waits on this one ends with the process.
        threading.Thread(
            target=_hear_in_thread, args=(pipe, loop, partial(stop, "pipe")), daemon=True
        ).start()
    else:
        loop.add_signal_handler(signal.SIGTERM, stop, "signal")
        loop.add_reader(pipe.fileno(), hear)
    # Reading what is stored, and writing it, are Python too, in threads: they give way to the event loop after so many
    # seconds, and not after the interpreter's 5 ms.
    sys.setswitchinterval(_SWITCH_SECONDS)
    async with service.running(sockets):
        gc.freeze()  # what start-up made lives as long as the process: the collector need not look at it again
        _tell(pipe, ready)
        await service.wait_stopped()
    if sys.platform != "win32":
        # The loop's handler goes with the loop; another SIGTERM must not cut the flush of the store short.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    return EXIT_OK if service.failure is None else EXIT_FAILED


def _hear_in_thread(pipe: Pipe, loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    while True:
        try:
            pipe.recv()
        except (EOFError, OSError):
            loop.call_soon_threadsafe(stop)
            return
        loop.call_soon_threadsafe(stop)
