"""The supervisor: binds the port, starts the workers, replaces one that dies or hangs, and passes signals on.

The sockets are bound here and shared by the workers, which take turns in accepting (see `accept`). The supervisor
keeps them open, so that connections which arrive while a worker is being replaced go to the others, or wait for its
successor, instead of being refused.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from service import __version__
from service.errors import StartupError
from service.metrics import Gauge, SharedCells
from service.server import BACKLOG
from service.settings import Settings
from service.worker import EXIT_FAILED, EXIT_OK, READY, STOP, run_worker

log = logging.getLogger(__name__)

# A worker that dies is replaced at once; one that dies again within this time waits twice as long each time.
_QUICK_DEATH_SECONDS = 5.0
_FIRST_DELAY, _LAST_DELAY = 0.1, 10.0

# Windows does not wake a wait for a signal: Ctrl-C is seen after this time at most.
_WINDOWS_SIGNAL_SECONDS = 0.5

# A worker's event loop turns many times a second, and each half second it says so. One that has not for _UNREADY_LOOKS
# looks is not counted as ready any longer; after _HUNG_LOOKS it is killed and replaced. Looks are counted, not seconds:
# where the whole service was held up (a paused container, a suspended machine), so was the looking.
_LOOK_SECONDS = 1.0
_UNREADY_LOOKS, _HUNG_LOOKS = 3, 10

# Beyond DRAIN_SECONDS, for closing connections and flushing the store.
_GRACE_SECONDS = 15.0


def bind(settings: Settings) -> list[socket.socket]:
    """The listening sockets, one for each address that HOST stands for. Port 0 is one free port for all.

    Raises:
        StartupError: the address does not exist, is in use, or may not be used.
    """
    try:
        addresses = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as exc:
        raise StartupError(
            f"HOST={settings.host} is not an address of this machine: {exc.strerror}"
        ) from None
    sockets: list[socket.socket] = []
    port = settings.port
    try:
        for family, kind, protocol, _, address in addresses:
            sockets.append(_listening(family, kind, protocol, (address[0], port, *address[2:])))
            port = sockets[0].getsockname()[1]
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise StartupError(
            f"cannot listen on {settings.host}:{port}: {os.strerror(exc.errno or 0)}; set HOST or PORT"
        ) from None
    return sockets


def _listening(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two services share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(BACKLOG)  # an address that is in use shows here, where SO_REUSEADDR hid it from bind
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass(slots=True)
class _Slot:
    """A worker's place: its process may be replaced."""

    index: int
    process: BaseProcess | None = None
    pipe: Pipe | None = None
    ready: bool = False
    started: float = 0.0
    delay: float = 0.0
    start_at: float = 0.0
    heartbeats: float = 0.0
    looks_without: int = 0


@dataclass(slots=True)
class Supervisor:
    """Runs the workers until a signal or until they cannot start."""

    settings: Settings
    shared: SharedCells = field(init=False)
    sockets: list[socket.socket] = field(init=False)
    slots: list[_Slot] = field(init=False)
    _context: BaseContext = field(init=False)
    _announced: bool = False
    _stops: int = 0
    _next_look: float = 0.0

    def __post_init__(self) -> None:
        self.shared = SharedCells(self.settings.workers)
        self.sockets = bind(self.settings)
        self.slots = [_Slot(index) for index in range(self.settings.workers)]
        # A forked worker shares what is imported with its siblings. Only Linux forks safely.
        self._context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT. Returns the exit code.

        Raises:
            StartupError: a worker could not start, and none had before.
        """
        wake, wake_end = self._context.Pipe(duplex=False)

        def on_signal(*_: object) -> None:
            wake_end.send(None)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        gc.freeze()  # the collector would touch, and so copy, every page that a fork shares
        try:
            for slot in self.slots:
                self._start(slot)
            return self._watch(wake)
        finally:
            self._end_all()

    def _start(self, slot: _Slot) -> None:
        ours, theirs = self._context.Pipe(duplex=True)
        slot.process = self._context.Process(  # type: ignore[attr-defined]
            target=_worker_main,
            args=(
                self.settings,
                self.sockets,
                self.shared,
                slot.index,
                theirs,
                self._inherited(slot, ours),
                self._announced,
            ),
            name=f"worker-{slot.index}",
        )
        assert slot.process is not None
        slot.process.start()
        theirs.close()
        slot.pipe, slot.ready, slot.started = ours, False, time.monotonic()
        slot.looks_without = 0

    def _inherited(self, slot: _Slot, ours: Pipe) -> list[Pipe]:
        """The supervisor's pipes that a forked worker has open: they would hide the supervisor's end from others."""
        if sys.platform != "linux":
            return []
        return [ours] + [each.pipe for each in self.slots if each is not slot and each.pipe is not None]

    def _watch(self, wake: Pipe) -> int:
        """Wait for signals, for what workers say, and for their ends."""
        deadline: float | None = None
        exit_code = EXIT_OK
        while True:
            alive = [slot for slot in self.slots if slot.process is not None]
            if self._stops and not alive:
                return exit_code
            objects: list[object] = [wake]
            objects += [slot.process.sentinel for slot in alive if slot.process is not None]
            objects += [slot.pipe for slot in alive if slot.pipe is not None and not slot.ready]
            fired = wait(objects, self._timeout(deadline))  # type: ignore[arg-type]
            if wake in fired:
                wake.recv()
                self._stops += 1
                deadline = time.monotonic() + self.settings.drain_seconds + _GRACE_SECONDS
                self._stop_all()
            for slot in alive:
                if slot.pipe in fired:
                    self._hear(slot)
            for slot in alive:
                if slot.process is not None and slot.process.sentinel in fired:
                    code = self._bury(slot)
                    if self._stops and code != EXIT_OK:
                        exit_code = EXIT_FAILED
            if self._stops:
                if deadline is not None and time.monotonic() > deadline:
                    log.error("workers did not stop in time; they are killed")
                    return EXIT_FAILED
                continue
            for slot in self.slots:
                if slot.process is None and time.monotonic() >= slot.start_at:
                    self._start(slot)
            if time.monotonic() >= self._next_look:
                self._look_for_hung_workers()
                self._next_look = time.monotonic() + _LOOK_SECONDS

    def _look_for_hung_workers(self) -> None:
        """Kill a worker whose event loop stands still: it would neither serve its clients nor end."""
        for slot in self.slots:
            if slot.process is None or not slot.ready:
                continue
            row = self.shared.row(slot.index)
            if row[Gauge.HEARTBEATS] != slot.heartbeats:
                slot.heartbeats, slot.looks_without = row[Gauge.HEARTBEATS], 0
                continue
            slot.looks_without += 1
            if slot.looks_without >= _UNREADY_LOOKS:
                row[Gauge.READY] = 0.0  # it says so anew when it moves again
            if slot.looks_without == _HUNG_LOOKS:
                log.error(
                    "worker %d has not moved for %.0f s: it is killed",
                    slot.index,
                    _HUNG_LOOKS * _LOOK_SECONDS,
                )
                slot.process.kill()

    def _timeout(self, deadline: float | None) -> float | None:
        """Seconds until something must be done without being told; None to sleep until then."""
        moments = []
        if not self._stops:
            moments += [slot.start_at for slot in self.slots if slot.process is None]
            moments.append(self._next_look)
        if deadline is not None:
            moments.append(deadline)
        if sys.platform == "win32":
            moments.append(time.monotonic() + _WINDOWS_SIGNAL_SECONDS)
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    def _hear(self, slot: _Slot) -> None:
        """Take a worker's word: that it is ready, or why it cannot start."""
        assert slot.pipe is not None
        try:
            said = slot.pipe.recv()
        except (EOFError, OSError):
            return  # it died before it could say anything; its sentinel fires too
        if isinstance(said, str):
            if not self._announced:
                raise StartupError(said)
            log.error("worker %d cannot start: %s", slot.index, said)
            return
        assert said[0] == READY
        slot.ready = True
        if not self._announced and all(each.ready for each in self.slots):
            self._announced = True
            self._announce(said[1])

    def _announce(self, version_tag: str) -> None:
        host, port = self.sockets[0].getsockname()[:2]
        settings = self.settings
        layout = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
        if settings.executors:
            layout += f" of {settings.executors} executor threads"
        print(
            f"VisionAI {__version__} is ready on ws://{f'[{host}]' if ':' in host else host}:{port} "
            f"(model {version_tag}, {layout}, {settings.provider})",
            flush=True,
        )

    def _bury(self, slot: _Slot) -> int:
        """A worker has ended: forget it, and plan its successor. Returns its exit code."""
        assert slot.process is not None
        assert slot.pipe is not None
        slot.process.join()
        code = slot.process.exitcode or 0
        slot.pipe.close()
        slot.process.close()
        slot.process = slot.pipe = None
        self.shared.forget(slot.index)
        if not self._stops:
            if not self._announced and not slot.ready:
                raise StartupError(
                    f"a worker ended while it started, with exit code {code}; the log has the cause"
                )
            quick = time.monotonic() - slot.started < _QUICK_DEATH_SECONDS
            slot.delay = min(_LAST_DELAY, max(_FIRST_DELAY, slot.delay * 2)) if quick else 0.0
            slot.start_at = time.monotonic() + slot.delay
            log.error("worker %d ended with exit code %d; it is replaced", slot.index, code)
        slot.ready = False
        return code

    def _stop_all(self) -> None:
        for sock in self.sockets:
            sock.close()  # or connections would wait in a backlog that no one accepts from
        for slot in self.slots:
            if slot.pipe is not None:
                # A worker that has just died does not hear; its sentinel says so.
                with contextlib.suppress(OSError):
                    slot.pipe.send(STOP)

    def _end_all(self) -> None:
        """Leave no worker behind, whatever happened."""
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.join()
        for sock in self.sockets:
            sock.close()


def _worker_main(
    settings: Settings,
    sockets: list[socket.socket],
    shared: SharedCells,
    index: int,
    pipe: Pipe,
    inherited: list[Pipe],
    is_successor: bool,
) -> None:
    """A worker process' entry."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # a forked worker has the supervisor's handlers until then
    for each in inherited:
        each.close()
    sys.exit(run_worker(settings, sockets, shared, index, pipe, is_successor=is_successor))
