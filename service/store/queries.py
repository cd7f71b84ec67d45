"""Reading the database beside the writer: a few threads, connections of their own, and a time limit.

A query never waits for the writer nor the writer for it: PostgreSQL's readers take no lock that matters, and SQLite's
read the state before the transaction that is under way (write-ahead log). Threads are made with the first query, and
give way to everything else of this process where the system lets one thread do so (Linux).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc

from service.errors import DeadlineExceeded, Internal, Overloaded, RequestError, ShuttingDown
from service.processes.niceness import give_way
from service.store.database import create_reading_engine, first_line
from service.telemetry.logs import Reasons

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Queries that run at once; what comes beside them waits.
THREADS: Final = 2
#: Queries that run or wait; one more is refused.
CAPACITY: Final = 16
TIMEOUT_S: Final = 10.0
#: Nobody waits longer for an answer: a database that hangs cuts nothing off. A connection and two statements that run
#: into their limits are within it.
PATIENCE_S: Final = 30.0

_RETRY_AFTER_MS: Final = 1000
_NICENESS: Final = 10
# Instructions of SQLite's machine between two looks at the clock: some milliseconds.
_SQLITE_STEPS: Final = 500_000
_QUERY_CANCELED: Final = "57014"


class Queries:
    """Runs queries on the database of `url`."""

    def __init__(self, url: sa.URL, timeout: float = TIMEOUT_S) -> None:
        self._timeout = timeout
        self._closed = False
        self._lock = threading.Lock()
        self._unfinished = 0
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = 0
        # Why reading fails, as the log has it already: during an outage each question of each client does.
        self._told = Reasons()
        self._engine = create_reading_engine(url, timeout)

    def submit(self, query: Callable[[sa.Connection], T], request_id: str | int | None = None) -> Future[T]:
        """Run `query` in a thread, with a connection. May be called from any thread; does not wait.

        `request_id` is for the log, where the query fails. The future's exception, if it has one, is a RequestError:
        `DeadlineExceeded` if the database took too long, `Internal` if it failed. One that is cancelled is not run, and
        keeps its place until its turn comes.

        Raises:
            Overloaded: too many queries wait already, or there is no thread for them.
            ShuttingDown: they are closed.
        """
        with self._lock:
            if self._closed:
                raise ShuttingDown()
            if self._unfinished >= CAPACITY:
                raise Overloaded("too many questions about stored predictions at once", _RETRY_AFTER_MS)
            if self._threads <= self._unfinished and self._threads < THREADS:
                # A daemon, which those of a ThreadPoolExecutor are not: a database that accepts a query and never
                # answers would keep the process from ending.
                name = f"store-query-{self._threads + 1}"
                try:
                    threading.Thread(target=self._work, name=name, daemon=True).start()
                    self._threads += 1
                except RuntimeError:  # the system has none to give: the next question tries again
                    if not self._threads:
                        raise Overloaded("the system has no thread for questions", _RETRY_AFTER_MS) from None
            self._unfinished += 1
            future: Future[T] = Future()
            self._tasks.put((future, partial(self._run, query, request_id)))
            return future

    def close(self) -> None:
        """Take no more queries, and do not wait for those that run."""
        with self._lock:
            self._closed = True
        with suppress(Empty):
            while (task := self._tasks.get_nowait()) is not None:
                task[0].cancel()
        for _ in range(self._threads):
            self._tasks.put(None)
        self._engine.dispose()

    def _work(self) -> None:
        give_way(_NICENESS)  # predictions are more urgent
        while (task := self._tasks.get()) is not None:
            if not _answer(*task):
                self._finished()
            del task  # or the answer is kept until the next query

    def _run(self, query: Callable[[sa.Connection], T], request_id: str | int | None) -> T:
        about = {"request_ids": [] if request_id is None else [request_id]}
        try:
            with self._engine.connect() as connection:
                if connection.dialect.name == "sqlite":
                    self._watch(connection)
                found = query(connection)
            self._told.clear()
            return found
        except exc.DBAPIError as error:
            if _was_cut(error):
                raise DeadlineExceeded(
                    f"the database took longer than {self._timeout:g} s: ask for a shorter time"
                ) from None
            reason = first_line(error)
            level = logging.WARNING if self._told.is_news(reason) else logging.DEBUG
            logger.log(level, "reading stored predictions failed: %s", reason, extra=about)
            raise Internal("stored predictions cannot be read now") from None
        except Exception:
            logger.exception("a query failed", extra=about)
            raise Internal("stored predictions cannot be read; the fault is ours") from None
        finally:
            self._finished()

    def _finished(self) -> None:
        with self._lock:
            self._unfinished -= 1

    def _watch(self, connection: sa.Connection) -> None:
        """Let SQLite look at the clock now and then."""
        deadline = time.monotonic() + self._timeout

        def is_over() -> bool:
            return self._closed or time.monotonic() > deadline

        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(is_over, _SQLITE_STEPS)


def _answer(future: Future[T], run: Callable[[], T]) -> bool:
    """Run a query, unless it was cancelled; whether it was run."""
    if not future.set_running_or_notify_cancel():
        return False
    try:
        result = run()
    except RequestError as error:
        future.set_exception(error)
    else:
        future.set_result(result)
    return True


def _was_cut(error: exc.DBAPIError) -> bool:
    return getattr(error.orig, "pgcode", None) == _QUERY_CANCELED or str(error.orig) == "interrupted"
