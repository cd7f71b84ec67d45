"""How long `history` and `stats` take over a large table, and what predictions notice of them.

Asked as clients ask, over WebSocket, one question at a time. The database is on the same cores as the service: what
it spends on an answer is what predictions lack meanwhile, as nowhere else.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import jwt

from benchmarks.misbehave import Disturbance, disturb
from benchmarks.percentiles import latency
from benchmarks.persistence import started_postgresql
from benchmarks.stored import SPACING_S, USER, add_connection, fill
from benchmarks.target import Target, started_service
from benchmarks.workload import face_jpeg
from client import AsyncClient, DeadlineExceeded, Retry

Database = Literal["sqlite", "postgresql"]

#: What the connection that asks for its own has made.
CONNECTION_ROWS: Final = 100_000

_LARGEST_PAGE: Final = 1000
_FEWEST, _MOST = 5, 1000
_SECRET: Final = "a secret of the benchmarks, of at least 32 bytes"
_HOUR, _DAY = 3600.0, 86400.0
_BUCKETS: Final = {_HOUR: 60, _DAY: 48}  # as the page asks
_BUCKETS_OF_ALL: Final = 48


@dataclass(frozen=True, slots=True)
class Answered:
    """One question, asked again and again: how many rows it is about, how often it was asked, milliseconds.

    `p50` and `p99` are None where the service gave up on it.
    """

    question: str
    whose: str
    span: str
    rows: int | None
    asked: int
    p50: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class HistoryResult:
    """What a database of `rows` rows gave."""

    database: Database
    rows: int
    fill_seconds: float
    answered: list[Answered]
    disturbances: list[list[Disturbance]]


@contextmanager
def filled_service(
    model: Path, database: Database, rows: int, tell: Callable[[int], object]
) -> Iterator[tuple[Target, str]]:
    """A service whose database holds so many rows, and the database's URL."""
    with ExitStack() as stack:
        if database == "postgresql":
            url = stack.enter_context(started_postgresql())
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="visionai-bench-"))
            url = f"sqlite:///{folder}/history.db"
        settings = {"DATABASE_URL": url, "AUTH": "optional", "JWT_SECRET": _SECRET}
        target = stack.enter_context(started_service(model, settings))
        fill(url, rows, tell)
        yield target, url


def measure_history(
    model: Path,
    database: Database,
    rows: int,
    seconds: float,
    repeats: int,
    tell: Callable[[int], object],
) -> HistoryResult:
    """Fill a database, ask each question for `seconds`, then each of the heavy ones beside predictions."""
    begun = time.monotonic()
    with filled_service(model, database, rows, tell) as (target, url):
        filled = time.monotonic() - begun
        answered = asyncio.run(_ask_all(target.url, url, rows, seconds))
        disturbances = [
            disturb(target, name, repeats, seconds, _keep_asking, target.url, window)
            for name, window in {
                "reads pages of 1000": None,
                "asks for a day": _DAY,
                "asks for all": _everything(rows),
            }.items()
        ]
    return HistoryResult(database, rows, filled, answered, disturbances)


def _everything(rows: int) -> float:
    """A window that holds them all, of whole minutes in each of its parts."""
    part = _BUCKETS_OF_ALL * 60
    return (rows * SPACING_S // part + 1) * part


def _client(url: str, user: str | None = None) -> AsyncClient:
    token = None
    if user is not None:
        token = jwt.encode({"sub": user, "exp": time.time() + 86400}, _SECRET, "HS256")
    return AsyncClient(url, token=token, timeout=60, retry=Retry(attempts=1))


async def _ask_all(service: str, database: str, rows: int, seconds: float) -> list[Answered]:
    windows = {"hour": _HOUR, "day": _DAY, "all": _everything(rows)}
    found = []
    async with _client(service) as anybody, _client(service, USER) as user:
        made = await anybody.predict(face_jpeg("64x64", "sure"))
        assert made.prediction_id is not None
        await asyncio.to_thread(add_connection, database, made.prediction_id, CONNECTION_ROWS)

        for whose, client in {"a connection's": anybody, "a user's": user}.items():
            for limit in (50, _LARGEST_PAGE):
                pages = _Pages(client, limit)
                found.append(await _ask("history", whose, f"pages of {limit}", pages.next, seconds))
        for whose, client, own in (
            ("a connection's", anybody, True),
            ("a user's", user, False),
            ("everybody's", anybody, False),
        ):
            for span, window in windows.items():

                async def ask(client: AsyncClient = client, window: float = window, own: bool = own) -> int:
                    buckets = _BUCKETS.get(window, _BUCKETS_OF_ALL)
                    return (await client.stats(window_s=window, buckets=buckets, connection_only=own)).count

                found.append(await _ask("stats", whose, span, ask, seconds))
    return found


class _Pages:
    """One page after the other, from the newest back, and from the newest again after the last."""

    def __init__(self, client: AsyncClient, limit: int) -> None:
        self._client = client
        self._limit = limit
        self._cursor: str | None = None

    async def next(self) -> int:
        """Read a page; how many rows it has."""
        page = await self._client.history(limit=self._limit, cursor=self._cursor)
        self._cursor = page.next
        return len(page.predictions)


async def _ask(
    question: str, whose: str, span: str, ask: Callable[[], Awaitable[int]], seconds: float
) -> Answered:
    """Ask once to warm up, then for so many seconds, and at least a few times."""
    times: list[float] = []
    try:
        rows = await ask()
        begun = time.perf_counter()
        while len(times) < _MOST and (time.perf_counter() - begun < seconds or len(times) < _FEWEST):
            asked = time.perf_counter()
            await ask()
            times.append(time.perf_counter() - asked)
    except DeadlineExceeded:
        return Answered(question, whose, span, None, len(times), None, None)
    found = latency(times)
    return Answered(question, whose, span, rows, len(times), found.p50, found.p99)


def _keep_asking(url: str, window: float | None) -> None:
    """Two connections that ask without a pause: for figures over a window, or, without one, for large pages."""
    os.nice(10)  # it stands for other machines: what it does itself does not count

    async def one() -> None:
        async with _client(url, None if window else USER) as client:
            pages = _Pages(client, _LARGEST_PAGE)
            while True:
                try:
                    if window is None:
                        await pages.next()
                    else:
                        await client.stats(window_s=window, buckets=_BUCKETS.get(window, _BUCKETS_OF_ALL))
                except DeadlineExceeded:
                    continue

    async def both() -> None:
        await asyncio.gather(one(), one())

    asyncio.run(both())
