"""Many images: what becomes of each, in their order, with some of them in flight."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

from client import results
from client.errors import ConnectionFailed, Unauthorized, VisionAIError
from client.images import ImageSource


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image of `predict_many`: a prediction, or the error, never both."""

    index: int
    source: ImageSource
    prediction: results.Prediction | None
    error: VisionAIError | OSError | None

    def __repr__(self) -> str:
        """As a dataclass's, but for the bytes of an image: those of one fill a terminal."""
        source = f"<{len(self.source)} bytes>" if isinstance(self.source, bytes) else repr(self.source)
        return (
            f"Outcome(index={self.index}, {source=!s}, prediction={self.prediction!r}, error={self.error!r})"
        )


async def settled(
    predict: Callable[[ImageSource], Awaitable[results.Prediction]], index: int, source: ImageSource
) -> Outcome:
    """The outcome for one image.

    Raises:
        ConnectionFailed, Unauthorized: what would fail all of them.
    """
    try:
        return Outcome(index, source, await predict(source), None)
    except (ConnectionFailed, Unauthorized):
        raise
    except (VisionAIError, OSError) as error:
        return Outcome(index, source, None, error)


async def in_order(
    images: Iterable[ImageSource] | AsyncIterable[ImageSource],
    concurrency: int,
    settle: Callable[[int, ImageSource], Coroutine[Any, Any, Outcome]],
) -> AsyncGenerator[Outcome]:
    """What `settle` gives for each image, in their order; one that is there waits for no image that is not drawn yet.

    At most `concurrency` images are drawn ahead of what is given out. No task is left behind, however this ends.
    """
    at_once = None if isinstance(images, AsyncIterable) else iter(images)
    window: deque[asyncio.Task[Outcome]] = deque()
    number = itertools.count()
    room = asyncio.Event()
    drawn: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # done once there is an image

    def start(image: ImageSource) -> None:
        window.append(asyncio.create_task(settle(next(number), image)))
        if not drawn.done():
            drawn.set_result(None)

    async def draw(source: AsyncIterable[ImageSource]) -> None:
        """In one task: what a source begins in one step, such as a timeout, it may end in another."""
        async for image in source:
            start(image)
            while len(window) >= concurrency:
                room.clear()
                await room.wait()

    drawing = asyncio.create_task(draw(images)) if isinstance(images, AsyncIterable) else None
    try:
        while True:
            if drawing is not None and drawing.done():
                drawing.result()
                drawing = None
            while at_once is not None and len(window) < concurrency:
                for image in at_once:
                    start(image)
                    break
                else:
                    at_once = None
            if window and (drawing is None or window[0].done()):
                yield await window[0]
                window.popleft()
                room.set()
            elif drawing is not None and window:
                await asyncio.wait([drawing, window[0]], return_when=asyncio.FIRST_COMPLETED)
            elif drawing is not None:
                drawn = asyncio.get_running_loop().create_future()
                await asyncio.wait([drawing, drawn], return_when=asyncio.FIRST_COMPLETED)
            else:
                return
    finally:
        tasks = [*window, *([] if drawing is None else [drawing])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
