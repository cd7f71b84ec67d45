"""What each version of the model has answered, in memory that the processes of one service share.

A version is known by its tag, and which versions there are changes with every reload. So each row has places with a
tag of their own: whoever writes the row, one process at a time, looks for its versions there or takes places for them,
and who reads adds up by tag. A row's next writer goes on where the last one ended: counters never go back.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_char, c_double
from dataclasses import dataclass
from multiprocessing.sharedctypes import RawArray

# As many versions as one row tells apart; one more takes the place of the one that was claimed longest ago.
_PLACES = 8
# A tag is at most as long as its column in the database, in characters.
_TAG_BYTES = 400
# Of each place: whether it is taken, and by the how manieth; then what is counted.
_CLAIM, _PREDICTIONS, _FAILURES, _SECONDS = range(4)
_CELLS = 4


@dataclass(slots=True)
class VersionCounts:
    """Requests answered, requests that failed, and seconds in the model: each request's part of its batches' runs."""

    predictions: float = 0.0
    failures: float = 0.0
    seconds: float = 0.0


class SharedVersions:
    """Rows of counts by version. To be made before the processes that use it are started."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._tags = RawArray(c_char, rows * _PLACES * _TAG_BYTES)
        self._counts = RawArray(c_double, rows * _PLACES * _CELLS)

    def counting(self, row: int, tags: Sequence[str]) -> VersionCounter:
        """Counts in a row that nobody else writes; versions are numbered as in `tags`."""
        cells = self._cells(row)
        claims = [cells[place * _CELLS + _CLAIM] for place in range(_PLACES)]
        own: list[int] = []
        for tag in tags:
            known = [place for place in range(_PLACES) if claims[place] and self._tag(row, place) == tag]
            free = [place for place in range(_PLACES) if place not in own]
            place = known[0] if known else min(free, key=claims.__getitem__)
            claims[place] = max(claims) + 1
            begin = place * _CELLS
            if not known:
                cells[begin + _CLAIM] = 0.0  # not to be read while it changes hands
                self._set_tag(row, place, tag)
                for cell in (_PREDICTIONS, _FAILURES, _SECONDS):
                    cells[begin + cell] = 0.0
            cells[begin + _CLAIM] = claims[place]
            own.append(place)
        return VersionCounter(cells, [place * _CELLS for place in own])

    def totals(self) -> dict[str, VersionCounts]:
        """Over all rows, by tag."""
        totals: dict[str, VersionCounts] = {}
        for row in range(self._rows):
            cells = self._cells(row)
            for place in range(_PLACES):
                begin = place * _CELLS
                if cells[begin + _CLAIM]:
                    counts = totals.setdefault(self._tag(row, place), VersionCounts())
                    counts.predictions += cells[begin + _PREDICTIONS]
                    counts.failures += cells[begin + _FAILURES]
                    counts.seconds += cells[begin + _SECONDS]
        return totals

    def _cells(self, row: int) -> memoryview[float]:
        size = _PLACES * _CELLS
        cells: memoryview[float] = memoryview(self._counts).cast("B").cast("d")
        return cells[row * size : (row + 1) * size]

    def _tag(self, row: int, place: int) -> str:
        begin = (row * _PLACES + place) * _TAG_BYTES
        tag = memoryview(self._tags).cast("B")[begin : begin + _TAG_BYTES].tobytes()
        return tag.rstrip(b"\0").decode(errors="replace")

    def _set_tag(self, row: int, place: int, tag: str) -> None:
        begin = (row * _PLACES + place) * _TAG_BYTES
        text = tag.encode()[:_TAG_BYTES].ljust(_TAG_BYTES, b"\0")
        memoryview(self._tags).cast("B")[begin : begin + _TAG_BYTES] = text


class VersionCounter:
    """Counts for one process, by its versions' numbers."""

    def __init__(self, cells: memoryview[float], begins: Sequence[int]) -> None:
        self._cells = cells
        self._begins = tuple(begins)

    def predicted(self, version: int, seconds: float) -> None:
        """A request was answered, after so long in the model."""
        begin = self._begins[version]
        self._cells[begin + _PREDICTIONS] += 1
        self._cells[begin + _SECONDS] += seconds

    def failed(self, version: int) -> None:
        """A request could not be answered, and the fault was ours."""
        self._cells[self._begins[version] + _FAILURES] += 1
