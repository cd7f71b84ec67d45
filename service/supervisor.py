"""The supervisor: binds the port, starts the workers, replaces one that dies or hangs, rolls them, and passes
signals on.

The sockets are bound here and shared by the workers, which take turns in accepting (see `accept`). The supervisor
keeps them open, so that connections which arrive while a worker is being replaced go to the others, or wait for its
successor, instead of being refused.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Protocol

from service import __version__
from service.errors import StartupError
from service.metrics import Gauge, SharedCells
from service.reload import RELOAD_SIGNALS, ControlSocket, Outcome, differences, reloaded
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


class Closable(Protocol):
    """A pipe or a socket."""

    def close(self) -> None:
        """Close it in this process."""


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


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker process. `row` is where it counts in the shared memory, its own as long as it lives."""

    process: BaseProcess
    pipe: Pipe
    row: int
    started: float
    ready: bool = False
    heartbeats: float = 0.0
    looks_without: int = 0
    # When it is killed, if it was told to stop.
    deadline: float = math.inf


@dataclass(slots=True, eq=False)
class _Slot:
    """A worker's place: whoever serves in it, and for the time of a roll the one that comes or the one that goes."""

    index: int
    worker: _Worker | None = None
    successor: _Worker | None = None
    predecessor: _Worker | None = None
    delay: float = 0.0
    start_at: float = 0.0

    def workers(self) -> list[_Worker]:
        """All that live."""
        return [each for each in (self.worker, self.successor, self.predecessor) if each is not None]


@dataclass(slots=True)
class _Roll:
    """A reload: slot by slot, the successor is loaded and warm before its predecessor drains."""

    settings: Settings
    waiting: deque[_Slot]
    error: str | None = None


@dataclass(slots=True)
class Supervisor:
    """Runs the workers until a signal or until they cannot start."""

    settings: Settings
    shared: SharedCells = field(init=False)
    sockets: list[socket.socket] = field(init=False)
    slots: list[_Slot] = field(init=False)
    _context: BaseContext = field(init=False)
    _control: ControlSocket | None = None
    _announced: bool = False
    _stops: int = 0
    _next_look: float = 0.0
    _roll: _Roll | None = None
    _again: bool = False
    _labels: tuple[str, ...] | None = None
    _version: str = ""
    _terminal: bool = field(default_factory=sys.stdin.isatty)

    def __post_init__(self) -> None:
        # One row more than workers: in a roll one of them has a successor.
        self.shared = SharedCells(self.settings.workers + 1)
        self.sockets = bind(self.settings)
        self.slots = [_Slot(index) for index in range(self.settings.workers)]
        # A forked worker shares what is imported with its siblings. Only Linux forks safely.
        self._context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; reload on SIGHUP. Returns the exit code.

        Raises:
            StartupError: a worker could not start, and none had before.
        """
        wake, wake_end = self._context.Pipe(duplex=False)

        def on_signal(number: int, _: object) -> None:
            wake_end.send(number)

        for number in (signal.SIGTERM, signal.SIGINT, *RELOAD_SIGNALS):
            signal.signal(number, on_signal)
        gc.freeze()  # the collector would touch, and so copy, every page that a fork shares
        try:
            self._control = ControlSocket.open(self.settings.control_socket)
            for slot in self.slots:
                slot.worker = self._start(self.settings)
            return self._watch(wake)
        finally:
            self._end_all()

    def _start(self, settings: Settings) -> _Worker:
        taken = {worker.row for slot in self.slots for worker in slot.workers()}
        row = next(row for row in range(len(self.slots) + 1) if row not in taken)
        ours, theirs = self._context.Pipe(duplex=True)
        labels = self._labels if self._announced else None
        process: BaseProcess = self._context.Process(  # type: ignore[attr-defined]
            target=_worker_main,
            args=(settings, self.sockets, self.shared, row, theirs, labels, self._inherited(ours)),
            name=f"worker-{row}",
        )
        process.start()
        theirs.close()
        return _Worker(process, ours, row, time.monotonic())

    def _inherited(self, ours: Pipe) -> list[Closable]:
        """What of the supervisor's a forked worker has open and must close.

        A pipe would hide the supervisor's end from others; the control socket would outlive the supervisor.
        """
        if sys.platform != "linux":
            return []
        control: list[Closable] = [] if self._control is None else [self._control]
        return [ours, *control, *(worker.pipe for slot in self.slots for worker in slot.workers())]

    def _watch(self, wake: Pipe) -> int:
        """Wait for signals, for what workers say, and for their ends."""
        exit_code = EXIT_OK
        while True:
            alive = [(slot, worker) for slot in self.slots for worker in slot.workers()]
            if self._stops and not alive:
                return exit_code
            objects: list[object] = [wake]
            if self._control is not None and not self._stops:
                objects.append(self._control)
            objects += [worker.process.sentinel for _, worker in alive]
            objects += [worker.pipe for _, worker in alive if not worker.ready]
            fired: list[object] = list(wait(objects, self._timeout()))  # type: ignore[arg-type]
            if wake in fired:
                if wake.recv() in RELOAD_SIGNALS and not self._hung_up():
                    self._reload()
                else:
                    self._stop_all()
            if self._control is not None and self._control in fired:
                self._control.accept()
                self._reload()
            for slot, worker in alive:
                if worker.pipe in fired:
                    self._hear(slot, worker)
            for slot, worker in alive:
                if worker.process.sentinel in fired:
                    code = self._bury(slot, worker)
                    if self._stops and code != EXIT_OK:
                        exit_code = EXIT_FAILED
                elif time.monotonic() > worker.deadline:
                    log.error("a worker did not stop in time; it is killed")
                    worker.process.kill()
                    worker.deadline = math.inf
                    exit_code = EXIT_FAILED if self._stops else exit_code
            if self._stops:
                continue
            for slot in self.slots:
                if slot.worker is None and slot.successor is None and time.monotonic() >= slot.start_at:
                    slot.worker = self._start(self.settings)
            self._advance()
            if time.monotonic() >= self._next_look:
                self._look_for_hung_workers()
                self._next_look = time.monotonic() + _LOOK_SECONDS

    def _look_for_hung_workers(self) -> None:
        """Kill a worker whose event loop stands still: it would neither serve its clients nor end."""
        for slot in self.slots:
            worker = slot.worker
            if worker is None or not worker.ready:
                continue
            row = self.shared.row(worker.row)
            if row[Gauge.HEARTBEATS] != worker.heartbeats:
                worker.heartbeats, worker.looks_without = row[Gauge.HEARTBEATS], 0
                continue
            worker.looks_without += 1
            if worker.looks_without >= _UNREADY_LOOKS:
                row[Gauge.READY] = 0.0  # it says so anew when it moves again
            if worker.looks_without == _HUNG_LOOKS:
                log.error(
                    "worker %d has not moved for %.0f s: it is killed",
                    slot.index,
                    _HUNG_LOOKS * _LOOK_SECONDS,
                )
                worker.process.kill()

    def _timeout(self) -> float | None:
        """Seconds until something must be done without being told; None to sleep until then."""
        moments = [worker.deadline for slot in self.slots for worker in slot.workers()]
        if not self._stops:
            moments.append(self._next_look)
            moments += [
                slot.start_at for slot in self.slots if slot.worker is None and slot.successor is None
            ]
        if sys.platform == "win32":
            moments.append(time.monotonic() + _WINDOWS_SIGNAL_SECONDS)
        soonest = min(moments, default=math.inf)
        return None if soonest == math.inf else max(0.0, soonest - time.monotonic())

    def _hear(self, slot: _Slot, worker: _Worker) -> None:
        """Take a worker's word: that it is ready, or why it cannot start."""
        try:
            said = worker.pipe.recv()
        except (EOFError, OSError):
            return  # it died before it could say anything; its sentinel fires too
        if isinstance(said, str):
            if not self._announced:
                raise StartupError(said)
            if worker is slot.successor:
                self._give_up(said)
            else:
                log.error("worker %d cannot start: %s", slot.index, said)
            return
        assert said[0] == READY
        worker.ready = True
        if worker is slot.successor and not self._stops:
            self._hand_over(slot, worker)
        self._version, self._labels = said[1], said[2]
        if not self._announced and all(each.worker and each.worker.ready for each in self.slots):
            self._announced = True
            self._announce()

    def _announce(self) -> None:
        host, port = self.sockets[0].getsockname()[:2]
        settings = self.settings
        scheme = "ws" if settings.tls_certificate is None else "wss"
        layout = f"{settings.workers} worker{'s' if settings.workers > 1 else ''}"
        if settings.executors:
            layout += f" of {settings.executors} executor threads"
        print(
            f"VisionAI {__version__} is ready on {scheme}://{f'[{host}]' if ':' in host else host}:{port} "
            f"(model {self._version}, {layout}, {settings.provider})",
            flush=True,
        )

    def _bury(self, slot: _Slot, worker: _Worker) -> int:
        """A worker has ended: forget it, and plan its successor. Returns its exit code."""
        worker.process.join()
        code = worker.process.exitcode or 0
        worker.pipe.close()
        worker.process.close()
        self.shared.forget(worker.row)
        if worker is slot.predecessor:
            slot.predecessor = None
            if code != EXIT_OK:
                log.error("worker %d, which was to be replaced, ended with exit code %d", slot.index, code)
        elif worker is slot.successor:
            slot.successor = None
            if not self._stops:
                self._give_up(f"a worker ended while it started, with exit code {code}")
        else:
            slot.worker = None
            if not self._stops:
                self._plan(slot, worker, code)
        return code

    def _plan(self, slot: _Slot, worker: _Worker, code: int) -> None:
        """When a worker that has died is replaced."""
        if not self._announced and not worker.ready:
            raise StartupError(
                f"a worker ended while it started, with exit code {code}; the log has the cause"
            )
        quick = time.monotonic() - worker.started < _QUICK_DEATH_SECONDS
        slot.delay = min(_LAST_DELAY, max(_FIRST_DELAY, slot.delay * 2)) if quick else 0.0
        slot.start_at = time.monotonic() + slot.delay
        log.error("worker %d ended with exit code %d; it is replaced", slot.index, code)

    # Reloading

    def _hung_up(self) -> bool:
        """Whether the terminal that the service was started from is gone: SIGHUP says that, too, and means the end."""
        return self._terminal and not os.isatty(sys.stdin.fileno())

    def _reload(self) -> None:
        """Begin to roll the workers. One that is under way is joined by who asks meanwhile, and done again."""
        if self._stops or not self._announced:
            return
        if self._roll is not None:
            self._again = True  # what it read may have changed since
            return
        log.info("reloading")
        try:
            settings = reloaded(self.settings)
        except StartupError as exc:
            self._finish(str(exc))
            return
        if changes := differences(self.settings, settings):
            log.info("changed: %s", ", ".join(changes))
        self._roll = _Roll(settings, deque(self.slots))

    def _hand_over(self, slot: _Slot, successor: _Worker) -> None:
        """The successor takes connections already; now the one before it stops, and may take its time."""
        assert self._roll is not None
        # A worker that dies from here on is replaced by one of the new kind, which has proved that it starts.
        self.settings = self._roll.settings
        slot.predecessor, slot.worker, slot.successor = slot.worker, successor, None
        if slot.predecessor is not None:
            self._stop(slot.predecessor)

    def _give_up(self, error: str) -> None:
        """A successor cannot start: who serves goes on serving."""
        if self._roll is not None:
            self._roll.error = self._roll.error or error  # what it said is better than how it ended
            self._roll.waiting.clear()

    def _advance(self) -> None:
        """Go on with the roll when its last step is complete: one slot at a time, so one worker more than usual."""
        if self._roll is None or any(slot.successor or slot.predecessor for slot in self.slots):
            return
        if self._roll.waiting:
            slot = self._roll.waiting.popleft()
            slot.successor = self._start(self._roll.settings)
            return
        error, self._roll = self._roll.error, None
        self._finish(error)

    def _finish(self, error: str | None) -> None:
        if error is None:
            log.info("reloaded: all workers serve model %s", self._version)
        else:
            log.error("not reloaded, the old workers go on: %s", error)
        self.shared.reloads.count(error)
        if self._again:
            self._again = False
            self._reload()
        elif self._control is not None:
            self._control.answer(Outcome(self._version, error))

    # Stopping

    def _stop(self, worker: _Worker) -> None:
        worker.deadline = time.monotonic() + self.settings.drain_seconds + _GRACE_SECONDS
        # A worker that has just died does not hear; its sentinel says so.
        with contextlib.suppress(OSError):
            worker.pipe.send(STOP)

    def _stop_all(self) -> None:
        self._stops += 1
        for sock in self.sockets:
            sock.close()  # or connections would wait in a backlog that no one accepts from
        for slot in self.slots:
            for worker in slot.workers():
                self._stop(worker)

    def _end_all(self) -> None:
        """Leave no worker behind, whatever happened."""
        for slot in self.slots:
            for worker in slot.workers():
                worker.process.kill()
                worker.process.join()
        for sock in self.sockets:
            sock.close()
        if self._control is not None:
            self._control.remove()


def _worker_main(
    settings: Settings,
    sockets: list[socket.socket],
    shared: SharedCells,
    row: int,
    pipe: Pipe,
    labels: tuple[str, ...] | None,
    inherited: list[Closable],
) -> None:
    """A worker process' entry."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # a forked worker has the supervisor's handlers until then
    for hangup in RELOAD_SIGNALS:
        signal.signal(hangup, signal.SIG_IGN)  # `kill -HUP` of the whole process group means the supervisor
    for each in inherited:
        each.close()
    sys.exit(run_worker(settings, sockets, shared, row, pipe, labels))
