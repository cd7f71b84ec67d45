"""What a worker's clients ask the database: each question is answered once, unless its client has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future

from service.commands.lookups import Read
from service.errors import DeadlineExceeded, RequestError, ShuttingDown
from service.protocol.replies import error_reply
from service.protocol.requests import RequestId
from service.store.queries import PATIENCE_S, Queries


class Questions:
    """Those of one worker. Methods are called on the event loop.

    Args:
        queries: the threads that read the database.
        on_error: told the code of each error that is replied.
    """

    def __init__(self, queries: Queries, on_error: Callable[[str], None]) -> None:
        self._queries = queries
        self._on_error = on_error
        self._loop = asyncio.get_running_loop()
        # Those that are not answered yet: whose, and what answers each, with an error if need be.
        self._asked: dict[Future[bytes], tuple[object, Callable[[RequestError], None]]] = {}

    def ask(
        self, asker: object, read: Read, request_id: RequestId, ended: Callable[[bytes | None], None]
    ) -> None:
        """Begin to read; `ended` is called once, on the event loop, with the reply, or None if the asker was dropped.

        Raises:
            Overloaded, ShuttingDown: `Queries.submit` takes no more.
        """
        found = self._queries.submit(read, request_id)

        def deliver(otherwise: RequestError) -> None:
            if self._asked.pop(found, None) is None:
                return  # it was not waited for any longer
            timer.cancel()
            if found.cancelled():  # the asker has gone
                ended(None)
                return
            try:
                reply = found.result(0)
            except (RequestError, TimeoutError) as exc:
                error = exc if isinstance(exc, RequestError) else otherwise
                found.cancel()  # if it still waits for its turn, others have it
                self._on_error(error.code)
                reply = error_reply(error, request_id)
            ended(reply)

        def found_in_thread(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the drain gave up on it, and the event loop is closed
                self._loop.call_soon_threadsafe(deliver, ShuttingDown())

        self._asked[found] = asker, deliver
        hangs = DeadlineExceeded(f"the database gave no answer for {PATIENCE_S:g} s")
        timer = self._loop.call_later(PATIENCE_S, deliver, hangs)
        found.add_done_callback(found_in_thread)

    def drop(self, asker: object) -> None:
        """Its questions are not run, but for what the database has begun with."""
        for found, (whose, _) in tuple(self._asked.items()):
            if whose is asker:
                found.cancel()

    def refuse(self) -> None:
        """Answer what the database has not answered yet as `shutting_down`."""
        for _, deliver in tuple(self._asked.values()):
            deliver(ShuttingDown())
