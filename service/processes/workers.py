"""Worker processes as the supervisor sees them: started, each in its place."""

from __future__ import annotations

import math
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Protocol

from service.processes.apart import CONTEXT, begin, start
from service.processes.cells import Gauge, SharedCells
from service.processes.worker import EXIT_OK, Pipe, Ready, Served, run_worker
from service.settings import Settings
from service.telemetry.logs import configure_logging

# A worker that dies is replaced at once; one that dies again soon waits twice as long each time.
_FIRST_DELAY, _LAST_DELAY = 0.1, 10.0

# A worker's event loop turns many times a second, and each half second it says so. One that has not for _UNREADY_LOOKS
# looks is not counted as ready any longer; after _HUNG_LOOKS it is killed and replaced. Looks are counted, not seconds:
# where the whole service was held up (a paused container, a suspended machine), so was the looking.
LOOK_SECONDS = 1.0
_UNREADY_LOOKS, _HUNG_LOOKS = 3, 10

# Beyond twice DRAIN_SECONDS, for requests in flight and for the flush of the store: handshakes under way (1 s),
# clients that do not read their replies and the close (10 s), traces (3 s), and some.
_GRACE_SECONDS = 20.0


def stop_seconds(drain_seconds: float) -> float:
    """Seconds from being told to stop to being killed. What kills the service, such as systemd, has to wait longer."""
    return 2 * drain_seconds + _GRACE_SECONDS


class Closable(Protocol):
    """A pipe or a socket."""

    def close(self) -> None:
        """Close it in this process."""


@dataclass(slots=True, eq=False)
class Worker:
    """A worker process. `row` is where it counts in the shared memory, its own as long as it lives."""

    process: BaseProcess
    pipe: Pipe
    row: int
    drain_seconds: float
    started: float
    ready: bool = False
    heartbeats: float = 0.0
    looks_without: int = 0
    # It was told to stop; what it is told then is to hurry.
    told: bool = False
    # When it is killed, unless it has ended by then if it stops, or is ready by then if it starts.
    deadline: float = math.inf

    def ended_as_told(self, code: int) -> bool:
        """Whether its exit code is that of one that was told to stop. What ends one that still starts is the signal."""
        return code in (EXIT_OK, EXIT_OK if self.ready else -signal.SIGTERM)

    def hangs(self, row: memoryview[float]) -> bool:
        """One look at its `row` in the shared memory: whether its event loop stands still, told once.

        It would neither serve its clients nor end. One that ends by itself has as long for that as if it was told to:
        while it stores what is left its event loop is closed.
        """
        if row[Gauge.ENDING]:
            self.deadline = min(self.deadline, time.monotonic() + stop_seconds(self.drain_seconds))
            return False
        if row[Gauge.HEARTBEATS] != self.heartbeats:
            self.heartbeats, self.looks_without = row[Gauge.HEARTBEATS], 0
            return False
        self.looks_without += 1
        if self.looks_without >= _UNREADY_LOOKS:
            row[Gauge.READY] = 0.0  # it says so anew when it moves again
        return self.looks_without == _HUNG_LOOKS


@dataclass(slots=True, eq=False)
class Slot:
    """A worker's place: whoever serves in it, and for the time of a roll the one that comes or the one that goes."""

    index: int
    worker: Worker | None = None
    successor: Worker | None = None
    predecessor: Worker | None = None
    delay: float = 0.0
    start_at: float = 0.0

    def workers(self) -> list[Worker]:
        """All that live."""
        return [each for each in (self.worker, self.successor, self.predecessor) if each is not None]

    @property
    def is_empty(self) -> bool:
        """Whether nobody serves here, or is about to."""
        return self.worker is None and self.successor is None

    def plan(self, quick: bool) -> None:
        """When the next worker is started here: at once, and after a quick death twice as late as the last time."""
        self.delay = min(_LAST_DELAY, max(_FIRST_DELAY, self.delay * 2)) if quick else 0.0
        self.start_at = time.monotonic() + self.delay


@dataclass(slots=True)
class Roll:
    """A reload: slot by slot, the successor is loaded and warm before its predecessor drains."""

    settings: Settings
    waiting: deque[Slot]
    # What was served when it began, and in how many slots it is not served any longer.
    before: Ready
    replaced: int = 0
    # What the first successor serves, which is what all are to serve.
    first: Ready | None = None
    error: str | None = None


def start_worker(
    settings: Settings,
    sockets: list[socket.socket],
    shared: SharedCells,
    row: int,
    served: Served | None,
    inherited: Sequence[Closable],
) -> Worker:
    """Start a process that serves the sockets, see `run_worker`.

    `inherited` is what this process has open and a forked one must close.

    Raises:
        OSError: the system has no memory, no process or no file left for it.
    """
    ours, theirs = CONTEXT.Pipe(duplex=True)
    # A spawned process inherits nothing, and could not take it.
    closed = [ours, *inherited] if sys.platform == "linux" else []
    process: BaseProcess = CONTEXT.Process(  # type: ignore[attr-defined]
        target=_worker_main,
        args=(settings, sockets, shared, row, theirs, served, closed),
        name=f"worker-{row}",
    )
    try:
        start(process)
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
    return Worker(process, ours, row, settings.drain_seconds, time.monotonic())


def _worker_main(
    settings: Settings,
    sockets: list[socket.socket],
    shared: SharedCells,
    row: int,
    pipe: Pipe,
    served: Served | None,
    inherited: list[Closable],
) -> None:
    """A worker process' entry."""
    begin()
    for each in inherited:
        each.close()
    configure_logging(settings.log_level, settings.log_format)
    sys.exit(run_worker(settings, sockets, shared, row, pipe, served))
