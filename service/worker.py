"""One worker process: loads the model, opens the store, serves until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe

from service import __version__
from service.emotions import DESCRIPTIONS
from service.engine import Engine
from service.errors import StartupError
from service.faces import FaceDetector
from service.logs import silence_native_libraries
from service.metrics import Metrics, SharedCells
from service.modelfile import check_source, resolve_detector, resolve_model
from service.security.perimeter import Perimeter
from service.server import Service
from service.settings import DETECTORS, Settings
from service.store import Store
from service.tracing import Tracing, start_tracing

# What a worker tells its supervisor through the pipe, once, and what it is told.
READY = "ready"
STOP = "stop"

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_CANNOT_START = 2


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


def load_detector(settings: Settings, engine: Engine) -> FaceDetector:
    """The face detector, whose files `make convert` builds.

    Raises:
        StartupError: a file is missing or wrong.
    """
    short_range, second = (resolve_detector(engine.card.path, name) for name in DETECTORS)
    return FaceDetector(short_range, second, settings.small_faces)


def open_store(settings: Settings, engine: Engine, *, during_outage: bool = False) -> Store:
    """The database, migrated, with the rows that this model's predictions point to.

    Raises:
        StartupError: it cannot be used; with `during_outage`, a database that does not answer is waited for.
    """
    card = engine.card
    return Store.open(
        settings.database_url,
        labels=card.labels,
        version_tag=card.version_tag,
        model_filename=card.path.name,
        descriptions=DESCRIPTIONS["es"],
        journal_dir=settings.journal_dir,
        fsync=settings.journal_fsync,
        private=settings.store_private,
        retention_days=settings.retention_days or None,
        during_outage=during_outage,
    )


def run_worker(
    settings: Settings,
    sockets: Sequence[socket.socket],
    shared: SharedCells,
    row: int,
    pipe: Pipe,
    labels: tuple[str, ...] | None = None,
) -> int:
    """Serve these bound sockets. Returns the exit code.

    `labels` are those of the model that is served already; None for the first workers. A successor's model must have
    the same: clients hold the list of emotions, and the metrics count by it. And it does not wait for a database: its
    predecessor would not have either.

    Sends through `pipe` either `READY`, the model's version and its labels, or why it cannot start. Stops when it is
    told so through the pipe, when the other end is closed (the supervisor is gone then, however it ended), and on
    SIGTERM. What comes second hurries.
    """
    # Ctrl-C in a terminal reaches the whole process group. The supervisor passes it on; taken twice, it would hurry.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    silence_native_libraries()
    try:
        engine = load_engine(settings)
        if labels is not None and tuple(engine.card.labels) != labels:
            raise StartupError(
                f"{engine.card.path} answers {', '.join(engine.card.labels)} and the model that is served "
                f"{', '.join(labels)}: that needs a restart"
            )
        detector = load_detector(settings, engine)
        metrics = Metrics(engine.card.labels, shared, row)
        perimeter = Perimeter(settings, shared, row, metrics.refused)
        store = open_store(settings, engine, during_outage=labels is not None)
    except StartupError as exc:
        pipe.send(str(exc))
        return EXIT_CANNOT_START
    tracing = start_tracing(__version__)
    try:
        with _runner(settings, shared, row) as runner:
            serving = _serve(settings, engine, detector, store, metrics, tracing, perimeter, sockets, pipe)
            return runner.run(serving)
    finally:
        if tracing is not None:
            tracing.close()
        if lost := store.close(timeout=settings.drain_seconds):
            print(f"VisionAI stopped with {lost} predictions that are not stored yet", file=sys.stderr)


def _runner(settings: Settings, shared: SharedCells, row: int) -> asyncio.Runner:
    if sys.platform == "win32":
        return asyncio.Runner()
    import uvloop

    if settings.workers == 1:
        return asyncio.Runner(loop_factory=uvloop.new_event_loop)
    from service.accept import SharingLoop, Turns

    return asyncio.Runner(loop_factory=lambda: SharingLoop(Turns(shared, row)))


async def _serve(
    settings: Settings,
    engine: Engine,
    detector: FaceDetector,
    store: Store,
    metrics: Metrics,
    tracing: Tracing | None,
    perimeter: Perimeter,
    sockets: Sequence[socket.socket],
    pipe: Pipe,
) -> int:
    loop = asyncio.get_running_loop()
    service = Service(settings, engine, store, metrics, detector, tracing, perimeter)
    stops = 0

    def stop() -> None:
        nonlocal stops
        stops += 1
        if stops == 1:
            service.stop()
        else:
            service.hurry()

    def hear() -> None:
        try:
            pipe.recv()
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
        stop()

    if sys.platform == "win32":
        # Its event loop watches no pipes; a thread that waits on this one ends with the process.
        threading.Thread(target=_hear_in_thread, args=(pipe, loop, stop), daemon=True).start()
    else:
        loop.add_signal_handler(signal.SIGTERM, stop)
        loop.add_reader(pipe.fileno(), hear)
    async with service.running(sockets):
        gc.freeze()  # what start-up made lives as long as the process: the collector need not look at it again
        pipe.send((READY, engine.card.version_tag, tuple(engine.card.labels)))
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
