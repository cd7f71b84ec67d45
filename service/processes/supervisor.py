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
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import wait

from service.errors import StartupError
from service.network.listening import bind
from service.processes.announcement import announce, difference, models_served
from service.processes.apart import CONTEXT, Apart
from service.processes.cells import SharedCells
from service.processes.hangup import RELOAD_SIGNALS, hung_up, let_through, listen
from service.processes.reload import ControlSocket, Outcome, differences, reloaded
from service.processes.worker import EXIT_FAILED, EXIT_OK, STOP, Pipe, Ready, Served
from service.processes.workers import LOOK_SECONDS, Closable, Roll, Slot, Worker, start_worker, stop_seconds
from service.settings import Settings

log = logging.getLogger(__name__)

# One that dies within this time is not replaced at once; see `Slot.plan`.
_QUICK_DEATH_SECONDS = 5.0

# The system counts milliseconds in 32 bits: a wait of weeks, for DRAIN_SECONDS, is waited for in parts.
_LONGEST_WAIT = 86_400.0

# Windows does not wake a wait for a signal: Ctrl-C is seen after this time at most.
_WINDOWS_SIGNAL_SECONDS = 0.5

# What a worker's start may take: TensorRT plans for minutes. The first workers' has no limit, for they may have a
# database to migrate.
_START_SECONDS = 300.0

# What reading the settings of a reload may take, with measuring a model on each provider: a drive may never answer.
_READING_SECONDS = 900.0


@dataclass(slots=True)
class Supervisor:
    """Runs the workers until a signal or until they cannot start."""

    settings: Settings
    shared: SharedCells = field(init=False)
    sockets: list[socket.socket] = field(init=False)
    slots: list[Slot] = field(init=False)
    _control: ControlSocket | None = None
    _announced: bool = False
    _stops: int = 0
    _next_look: float = 0.0
    # A reload reads, and may measure, in a process of its own: it must not keep us from all else.
    _reading: Apart[Settings] | None = None
    _reading_until: float = math.inf
    _roll: Roll | None = None
    _again: bool = False
    # What the worker that became ready last serves.
    _ready: Ready | None = None

    def __post_init__(self) -> None:
        # One row more than workers: in a roll one of them has a successor.
        self.shared = SharedCells(self.settings.workers + 1)
        self.sockets = bind(self.settings)
        self.slots = [Slot(index) for index in range(self.settings.workers)]

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; reload on SIGHUP. Returns the exit code.

        Raises:
            StartupError: a worker could not start, and none had before.
        """
        wake, wake_end = CONTEXT.Pipe(duplex=False)
        listen(lambda number, _: wake_end.send(number))
        let_through()
        gc.freeze()  # the collector would touch, and so copy, every page that a fork shares
        try:
            self._control = ControlSocket.open(self.settings.control_socket)
            for slot in self.slots:
                self._fill(slot)
            return self._watch(wake)
        finally:
            self._end_all()
            # All is done, and nobody reads the pipe any longer: another signal must not make it a failure.
            listen(signal.SIG_IGN)

    def _fill(self, slot: Slot) -> None:
        """Start the worker of an empty slot. One that cannot be started now has died quickly."""
        try:
            slot.worker = self._start(self.settings)
        except OSError as exc:
            error = f"worker {slot.index} cannot be started: {exc.strerror}"
            if not self._announced:
                raise StartupError(error) from None
            slot.plan(quick=True)
            log.error("%s", error)

    def _start(self, settings: Settings) -> Worker:
        taken = {worker.row for slot in self.slots for worker in slot.workers()}
        row = next(row for row in range(len(self.slots) + 1) if row not in taken)
        served = None
        if self._ready is not None and self._announced:
            served = Served(self._ready.labels, self.settings.database_url, self.settings.journal_dir)
        # What a forked worker has of ours and must close: a pipe would hide our end from others, the control socket
        # would outlive us.
        control: list[Closable] = [] if self._control is None else [self._control]
        pipes = [worker.pipe for slot in self.slots for worker in slot.workers()]
        worker = start_worker(settings, self.sockets, self.shared, row, served, [*control, *pipes])
        if self._announced:
            worker.deadline = worker.started + _START_SECONDS
        return worker

    def _watch(self, wake: Pipe) -> int:
        """Wait for signals, for what workers say, and for their ends."""
        exit_code = EXIT_OK
        while True:
            alive = [(slot, worker) for slot in self.slots for worker in slot.workers()]
            if self._stops and not alive:
                return exit_code
            objects: list[object] = [wake]
            if self._control is not None and self._listens(self._control):
                objects.append(self._control)
            objects += [worker.process.sentinel for _, worker in alive]
            objects += [worker.pipe for _, worker in alive if not worker.ready]
            if self._reading is not None:
                objects.append(self._reading.pipe)
            fired: list[object] = list(wait(objects, self._timeout()))  # type: ignore[arg-type]
            if wake in fired:
                if wake.recv() in RELOAD_SIGNALS and not hung_up():
                    self._reload()
                else:
                    self._stop_all()
            if self._control is not None and self._control in fired and self._control.accept():
                self._reload()
            if self._reading is not None and self._reading.pipe in fired:
                self._take_settings(self._reading)
            elif time.monotonic() > self._reading_until:
                self._end_reading()
                self._finish(f"the settings could not be read within {_READING_SECONDS:g} s")
            for slot, worker in alive:
                if worker.pipe in fired:
                    self._hear(slot, worker)
            for slot, worker in alive:
                if worker.process.sentinel in fired:
                    code = self._bury(slot, worker)
                    if self._stops and not worker.ended_as_told(code):
                        log.error("worker %d ended with exit code %d instead of stopping", slot.index, code)
                        exit_code = EXIT_FAILED
                elif time.monotonic() > worker.deadline:
                    stops = worker.told or worker.ready
                    log.error("a worker did not %s in time; it is killed", "stop" if stops else "start")
                    if worker is slot.successor:
                        self._give_up(f"a worker did not start within {_START_SECONDS:g} s")
                    worker.process.kill()
                    worker.deadline = math.inf
                    exit_code = EXIT_FAILED if self._stops else exit_code
            if self._stops:
                continue
            for slot in self.slots:
                if slot.is_empty and time.monotonic() >= slot.start_at:
                    self._fill(slot)
            self._advance()
            if time.monotonic() >= self._next_look:
                self._look_for_hung_workers()
                self._next_look = time.monotonic() + LOOK_SECONDS

    def _listens(self, control: ControlSocket) -> bool:
        """Whether requests to reload are taken. Those that come during the start wait in the socket's queue."""
        return self._announced and not self._stops and time.monotonic() >= control.looked_at_from

    def _look_for_hung_workers(self) -> None:
        for slot in self.slots:
            worker = slot.worker
            if worker is not None and worker.ready and worker.hangs(self.shared.row(worker.row)):
                seconds = worker.looks_without * LOOK_SECONDS
                log.error("worker %d has not moved for %.0f s: it is killed", slot.index, seconds)
                worker.process.kill()

    def _timeout(self) -> float | None:
        """Seconds until something must be done without being told; None to sleep until then."""
        moments = [self._reading_until, *(each.deadline for slot in self.slots for each in slot.workers())]
        if not self._stops:
            moments.append(self._next_look)
            moments += [slot.start_at for slot in self.slots if slot.is_empty]
        if sys.platform == "win32":
            moments.append(time.monotonic() + _WINDOWS_SIGNAL_SECONDS)
        soonest = min(moments, default=math.inf)
        return None if soonest == math.inf else min(max(0.0, soonest - time.monotonic()), _LONGEST_WAIT)

    def _hear(self, slot: Slot, worker: Worker) -> None:
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
        assert isinstance(said, Ready)
        worker.ready = True
        if worker.told:
            return  # it stops, whatever it serves
        worker.deadline = math.inf
        if worker is slot.successor:
            roll = self._roll
            if roll is None or roll.error:
                return  # it was too late, and is killed
            if other := difference(said, roll.first, roll.settings):
                self._give_up(f"a worker serves {other}")
                self._stop(worker)
                return
            roll.first = said
            self._hand_over(slot, worker)
        elif self._announced and (other := difference(said, self._ready, self.settings)):
            log.warning("worker %d, which replaces one that ended, serves %s", slot.index, other)
        self._ready = said
        if not self._announced and all(each.worker and each.worker.ready for each in self.slots):
            self._announced = True
            announce(said, self.settings, *self.sockets[0].getsockname()[:2])
            if self._again:
                self._reload()

    def _bury(self, slot: Slot, worker: Worker) -> int:
        """A worker has ended: forget it, and plan its successor. Returns its exit code."""
        worker.process.join()
        code = worker.process.exitcode or 0
        worker.pipe.close()
        worker.process.close()
        self.shared.forget(worker.row)
        if worker is slot.predecessor:
            slot.predecessor = None
            if not (self._stops or worker.ended_as_told(code)):
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

    def _plan(self, slot: Slot, worker: Worker, code: int) -> None:
        """When a worker that has died is replaced."""
        if not self._announced and not worker.ready:
            raise StartupError(
                f"a worker ended while it started, with exit code {code}; the log has the cause"
            )
        slot.plan(quick=time.monotonic() - worker.started < _QUICK_DEATH_SECONDS)
        log.error("worker %d ended with exit code %d; it is replaced", slot.index, code)

    # Reloading

    def _reload(self) -> None:
        """Read the settings anew, once the workers are ready. Who asks amid a reload joins it, and it is done again."""
        if self._stops:
            return
        if self._reading is not None or self._roll is not None or not self._announced:
            self._again = True  # what was read may have changed since
            return
        self._again = False
        log.info("reloading")
        try:
            self._reading = Apart(
                partial(reloaded, self.settings), "reading the settings came to no end; the log has the cause"
            )
        except StartupError as exc:
            self._finish(str(exc))
        else:
            self._reading_until = time.monotonic() + _READING_SECONDS

    def _take_settings(self, reading: Apart[Settings]) -> None:
        """Begin to roll the workers when the settings are read."""
        try:
            if not reading.hear():
                return
            settings = reading.result
        except StartupError as exc:
            self._end_reading()
            self._finish(str(exc))
            return
        self._end_reading()
        assert self._ready is not None
        if changes := differences(self.settings, settings):
            log.info("changed: %s", ", ".join(changes))
        self._roll = Roll(settings, deque(self.slots), self._ready)

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.end()
            self._reading, self._reading_until = None, math.inf

    def _hand_over(self, slot: Slot, successor: Worker) -> None:
        """The successor takes connections already; now the one before it stops, and may take its time."""
        assert self._roll is not None
        # A worker that dies from here on is replaced by one of the new kind, which has proved that it starts.
        self.settings = self._roll.settings
        self._roll.replaced += 1
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
            try:
                slot.successor = self._start(self._roll.settings)
                return
            except OSError as exc:
                self._give_up(f"a worker cannot be started: {exc.strerror}")
        roll, self._roll = self._roll, None
        self._finish(roll.error, roll)

    def _finish(self, error: str | None, roll: Roll | None = None) -> None:
        served = self._ready
        assert served is not None
        if error is None:
            log.info("reloaded: all workers serve %s", models_served(served, self.settings))
        else:
            if roll is not None and roll.replaced:
                error += (
                    f"; by then {roll.replaced} of {len(self.slots)} workers had been replaced, "
                    f"by {models_served(served, self.settings)}"
                )
                served = roll.before
            log.error("not reloaded, who serves goes on: %s", error)
        self.shared.reloads.count(error)
        if self._again:
            self._reload()
        elif self._control is not None:
            self._control.answer(Outcome(served.version_tag, error, served.canary_tag))

    # Stopping

    def _stop(self, worker: Worker) -> None:
        if not worker.told:
            worker.told = True
            worker.deadline = time.monotonic() + stop_seconds(worker.drain_seconds)
        if not worker.ready and sys.platform != "win32":
            # One that starts does not hear: it may migrate a large database, or wait for one that is locked. If it
            # serves by now it takes the signal for what it would be told.
            worker.process.terminate()
            return
        # A worker that has just died does not hear; its sentinel says so.
        with contextlib.suppress(OSError):
            worker.pipe.send(STOP)

    def _stop_all(self) -> None:
        self._stops += 1
        for sock in self.sockets:
            sock.close()  # or connections would wait in a backlog that no one accepts from
        for slot in self.slots:
            for worker in slot.workers():
                # A reload's predecessor stops already, and is not to hurry at the first signal.
                if self._stops > 1 or not worker.told:
                    self._stop(worker)
        self._end_reading()  # last: it may take seconds

    def _end_all(self) -> None:
        """Leave no process behind, whatever happened."""
        self._end_reading()
        for slot in self.slots:
            for worker in slot.workers():
                worker.process.kill()
                worker.process.join()
        for sock in self.sockets:
            sock.close()
        if self._control is not None:
            self._control.remove()
