"""The blocking client: an `AsyncClient` on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import sys
import threading
from collections import deque
from collections.abc import Coroutine, Generator, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from client import results
from client.async_client import DEFAULT_URL, AsyncClient, Detect, Priority
from client.errors import ConnectionLost
from client.images import ImageSource, check_several
from client.many import Outcome, settled
from client.protocol import Welcome
from client.retry import Retry

T = TypeVar("T")


class Client:
    """A client for programs without asyncio. Takes and does what `AsyncClient` does, and blocks meanwhile.

    ::

        with Client("ws://127.0.0.1:8000/ws") as client:
            print(client.predict("face.jpg").emotion_name)

    Threads may share a client; a process that is forked makes its own. Close it: until then its thread runs. What
    other threads wait for then fails with `ConnectionLost`.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        token: str | None = None,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        retry: Retry | None = None,
        keepalive: float = 10.0,
    ) -> None:
        self._client = AsyncClient(
            url,
            token=token,
            timeout=timeout,
            connect_timeout=connect_timeout,
            retry=retry,
            keepalive=keepalive,
        )
        # What is given to the loop after the last of its work was cancelled would never be done.
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="visionai client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        """Connect. Raises what `connect` raises."""
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()

    def connect(self) -> Welcome:
        """Connect if there is no connection, see `AsyncClient.connect`."""
        return self._wait(self._start(self._client.connect()))

    def close(self) -> None:
        """Close the connection and end the thread. May be called again."""
        if os.getpid() != self._process or sys.is_finalizing():
            return  # they are the other process's, or Python has ended the thread: a generator's `with` is left last
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _end(self) -> None:
        await self._client.aclose()
        # Work that waits to try again, or for a file, hears nothing of that.
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def predict(
        self,
        image: ImageSource,
        *,
        detect: Detect | None = None,
        max_faces: int | None = None,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> results.Prediction:
        """The emotion in an image, see `AsyncClient.predict`."""
        prediction = self._client.predict(
            image, detect=detect, max_faces=max_faces, priority=priority, timeout=timeout
        )
        return self._wait(self._start(prediction))

    def predict_many(
        self,
        images: Iterable[ImageSource],
        *,
        concurrency: int = 16,
        detect: Detect | None = None,
        max_faces: int | None = None,
        priority: Priority | None = None,
        timeout: float | None = None,
    ) -> Generator[Outcome, None, None]:
        """The emotions in many images, in their order, see `AsyncClient.predict_many`.

        `images` is drawn from in the caller's thread. An outcome that is there comes out once the next image is.
        """
        check_several(images, concurrency)
        predict = partial(
            self._client.predict, detect=detect, max_faces=max_faces, priority=priority, timeout=timeout
        )
        window: deque[concurrent.futures.Future[Outcome]] = deque()
        try:
            for index, source in enumerate(images):
                window.append(self._start(settled(predict, index, source)))
                # One for each that is drawn: a program that is slow with them leaves the server something to do.
                if len(window) >= concurrency or window[0].done():
                    yield self._wait(window[0])
                    window.popleft()
            while window:
                yield self._wait(window[0])
                window.popleft()
        finally:
            for future in window:
                future.cancel()

    def emotions(self) -> tuple[results.Emotion, ...]:
        """The emotions that the server tells apart."""
        return self._wait(self._start(self._client.emotions()))

    def model_info(self) -> results.ModelInfo:
        """The model that the server runs."""
        return self._wait(self._start(self._client.model_info()))

    def models(self) -> tuple[results.ModelVersion, ...]:
        """The model versions that the server has."""
        return self._wait(self._start(self._client.models()))

    def ping(self) -> float:
        """Seconds to the server and back, without an image."""
        return self._wait(self._start(self._client.ping()))

    def health(self) -> results.Health:
        """How the server is."""
        return self._wait(self._start(self._client.health()))

    def stats(
        self, *, window_s: float = 3600.0, buckets: int = 0, connection_only: bool = False
    ) -> results.Stats:
        """Counts, confidence and latency of the last `window_s` seconds, see `AsyncClient.stats`."""
        asked = self._client.stats(window_s=window_s, buckets=buckets, connection_only=connection_only)
        return self._wait(self._start(asked))

    def history(self, *, limit: int = 50, cursor: str | None = None) -> results.HistoryPage:
        """Stored predictions, latest first, see `AsyncClient.history`."""
        return self._wait(self._start(self._client.history(limit=limit, cursor=cursor)))

    def configure(self, **options: Any) -> Mapping[str, Any]:
        """Set defaults of this client's requests, see `AsyncClient.configure`."""
        return self._wait(self._start(self._client.configure(**options)))

    def request(self, command: str, **fields: Any) -> Mapping[str, Any]:
        """Send any command, and return its reply as it came, see `AsyncClient.request`."""
        return self._wait(self._start(self._client.request(command, **fields)))

    def _start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if os.getpid() != self._process:
            work.close()  # or Python would warn that it was never awaited
            # The thread that would do it was not forked with the rest.
            raise RuntimeError("the client was made before this process was forked: make one in each process")
        with self._lock:
            if self._closed or sys.is_finalizing():
                work.close()
                raise ConnectionLost("the client is closed")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _wait(self, future: concurrent.futures.Future[T]) -> T:
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ConnectionLost("the client was closed") from None
        except RuntimeError as error:
            if not threading.main_thread().is_alive():
                # Its own words are of futures and exits.
                error.add_note(
                    "once the main thread has ended, no file is read and no name looked up: join this one"
                )
            raise
        except BaseException:
            # Ctrl-C reaches the thread that waits here: nobody wants the answer any more.
            future.cancel()
            raise
