"""The memory that the workers of one service share: a row of cells for each, which any of them can add up.

One process writes a row, on its event loop; so there is no lock. A worker that is replaced leaves its row to its
successor, so counters never go back.
"""

from __future__ import annotations

import os
from ctypes import c_char, c_double, c_uint32
from enum import IntEnum, auto
from multiprocessing.sharedctypes import RawArray

from service.versions import SharedVersions

# Cells of a worker that count connections by address, see `security.admission`.
ADDRESS_CELLS = 2**16


class Gauge(IntEnum):
    """What each worker keeps up to date, and what the sum over workers tells."""

    CONNECTIONS = 0
    # Open sockets, those included that shake hands still or speak plain HTTP.
    SOCKETS = auto()
    QUEUE_DEPTH = auto()
    STORE_PENDING = auto()
    JOURNAL_FAILING = auto()
    DATABASE_FAILING = auto()
    # Connections that passed the gate, see `security.admission`; from the handshake on until the socket is closed.
    ADMITTED = auto()
    READY = auto()
    RESIDENT_BYTES = auto()
    # Not told to anybody: goes up while the event loop turns. See `workers.Worker.hangs`.
    HEARTBEATS = auto()
    # Nor is this: whether the worker has begun to end, as it was told or by itself.
    ENDING = auto()


class Reloads:
    """How the reloads of one service went, in memory that its processes share. The supervisor alone writes."""

    def __init__(self) -> None:
        self._counts = RawArray(c_double, 2)
        self._error = RawArray(c_char, 1024)

    def count(self, error: str | None) -> None:
        """One is over."""
        self._error.value = (error or "").encode()[: len(self._error) - 1]
        self._counts[0 if error is None else 1] += 1

    @property
    def done(self) -> float:
        """How many went well."""
        return self._counts[0]

    @property
    def failed(self) -> float:
        """How many left the old workers serving."""
        return self._counts[1]

    @property
    def last_error(self) -> str | None:
        """What was wrong with the last one, if it failed."""
        return self._error.value.decode(errors="replace") or None


class SharedCells:
    """The memory that the workers of one service share, a row for each. To be made before they are started.

    Raises:
        OSError: there is no place for it, which is a file in /dev/shm, or else in the folder for temporary files.
    """

    # More than any model's layout takes: the model is not known yet when this is made.
    _ROW = 512

    def __init__(self, workers: int) -> None:
        self.reloads = Reloads()
        self.versions = SharedVersions(workers)
        self._workers = workers
        self._array = RawArray(c_double, workers * self._ROW)
        self._addresses = RawArray(c_uint32, workers * ADDRESS_CELLS)
        # Of the hash that chooses an address' cells: nobody outside can tell which addresses share them.
        self.salt = os.urandom(16)

    def row(self, worker: int) -> memoryview[float]:
        """The cells of one worker, as doubles."""
        cells: memoryview[float] = memoryview(self._array).cast("B").cast("d")
        return cells[worker * self._ROW : (worker + 1) * self._ROW]

    def forget(self, worker: int) -> None:
        """A worker is gone: nothing is connected to it, and nothing waits for it. What it counted stays."""
        row = self.row(worker)
        for gauge in Gauge:
            row[gauge] = 0.0
        self.address_row(worker)[:] = memoryview(bytes(4 * ADDRESS_CELLS)).cast("I")

    def rows(self) -> list[memoryview[float]]:
        """The cells of all workers."""
        return [self.row(worker) for worker in range(self._workers)]

    def address_row(self, worker: int) -> memoryview[int]:
        """One worker's connections by address, in `ADDRESS_CELLS` cells."""
        cells: memoryview[int] = memoryview(self._addresses).cast("B").cast("I")
        return cells[worker * ADDRESS_CELLS : (worker + 1) * ADDRESS_CELLS]

    def address_rows(self) -> list[memoryview[int]]:
        """Those of all workers."""
        return [self.address_row(worker) for worker in range(self._workers)]
