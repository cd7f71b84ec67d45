"""`visionai watch`: the emotions before a camera, live in the terminal."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated

import orjson
import typer
from rich.bar import Bar
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from client.async_client import AsyncClient
from client.cli import options
from client.cli.camera import Camera
from client.cli.inputs import InputError
from client.cli.output import counted, percent, without
from client.errors import ConnectionFailed, ConnectionLost, Superseded, Unauthorized, VisionAIError
from client.results import Prediction

# Two in flight keep the server busy while a reply travels; more would only be overtaken.
_IN_FLIGHT = 2
_RECENT = 50


def watch(
    camera: Annotated[
        str, typer.Option("--camera", help="A camera's number, or a video file.", metavar="0|VIDEO")
    ] = "0",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for each frame.")] = False,
    url: options.Url = options.URL,
    token: options.Token = None,
    timeout: options.Timeout = 5.0,
) -> None:
    """Recognise the emotions in a camera's frames, live, until Ctrl-C or the end of the video.

    The newest frame wins: frames that come while the server is busy are dropped.

    Example: visionai watch --camera video.avi
    """
    view = Watched()
    try:
        asyncio.run(_watch(options.client_for(url, token, timeout), camera, as_json, view))
        if not view.frames:
            raise InputError(f"{camera} gave no frame")
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="'--camera'") from None
    finally:
        if view.frames:
            print(view.summary(), file=sys.stderr)


@dataclass(slots=True)
class Watched:
    """What has been seen so far."""

    frames: int = 0
    answered: int = 0
    superseded: int = 0
    failed: int = 0
    last: Prediction | None = None
    last_error: VisionAIError | None = None
    round_trips: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    answer_times: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def answer(self, prediction: Prediction, seconds: float) -> None:
        """A frame was answered after `seconds`."""
        self.answered += 1
        self.last = prediction
        self.last_error = None
        self.round_trips.append(seconds)
        # Not `monotonic`, which goes on by 16 ms at a time on Windows, before Python 3.13: there is no rate within one.
        self.answer_times.append(time.perf_counter())

    def fail(self, error: VisionAIError) -> None:
        """A frame was not answered."""
        if isinstance(error, Superseded):
            self.superseded += 1
        else:
            self.failed += 1
            self.last_error = error

    def rate(self) -> float:
        """Answers per second, over the latest."""
        if len(self.answer_times) < 2:
            return 0.0
        return (len(self.answer_times) - 1) / (self.answer_times[-1] - self.answer_times[0])

    def round_trip_ms(self) -> float:
        """Median milliseconds from a frame to its answer, over the latest."""
        return statistics.median(self.round_trips) * 1000 if self.round_trips else 0.0

    def summary(self) -> str:
        """One line at the end."""
        overtaken = self.frames - self.answered - self.failed
        return (
            f"{counted(self.frames, 'frame')}, {self.answered} answered, {overtaken} overtaken, "
            f"{self.failed} failed; median {self.round_trip_ms():.1f} ms"
        )


async def _watch(client: AsyncClient, source: str, as_json: bool, view: Watched) -> None:
    loop = asyncio.get_running_loop()
    newest = Newest()
    camera = Camera(source, lambda frame: loop.call_soon_threadsafe(newest.offer, frame))
    console = Console(markup=False)
    try:
        async with client:
            if "configure" in (await client.connect()).commands:
                await client.configure(stream=True)
            camera.start()
            with Live(console=console, auto_refresh=False) as live:
                if as_json:
                    live.stop()

                async def send_frames() -> None:
                    while (frame := await newest.take()) is not None:
                        await _send(client, frame, as_json, view)
                        if not as_json:
                            live.update(screen(view), refresh=True)

                senders = [asyncio.create_task(send_frames()) for _ in range(_IN_FLIGHT)]
                try:
                    await asyncio.gather(*senders)
                finally:
                    for sender in senders:
                        sender.cancel()
                    await asyncio.gather(*senders, return_exceptions=True)
            if newest.offered and not (as_json or console.is_terminal):
                console.line()  # the last of the screen; on a terminal the library ends it
    finally:
        view.frames = newest.offered
        await asyncio.to_thread(camera.stop)


async def _send(client: AsyncClient, frame: bytes, as_json: bool, view: Watched) -> None:
    started = time.perf_counter()
    try:
        prediction = await client.predict(frame)
    except ConnectionLost as error:
        view.fail(error)  # the next frame restores the connection
    except (ConnectionFailed, Unauthorized):
        raise
    except VisionAIError as error:
        view.fail(error)
    else:
        view.answer(prediction, time.perf_counter() - started)
        if as_json:
            print(orjson.dumps(without(prediction.raw, "id")).decode(), flush=True)


class Newest:
    """Holds the newest frame until it is taken; an older one that nobody took is dropped."""

    def __init__(self) -> None:
        self.offered = 0
        self._frame: bytes | None = None
        self._ended = False
        self._changed = asyncio.Event()

    def offer(self, frame: bytes | None) -> None:
        """Put a frame in place of the one before; None says that there are no more."""
        if frame is None:
            self._ended = True
        else:
            self.offered += 1
            self._frame = frame
        self._changed.set()

    async def take(self) -> bytes | None:
        """The newest frame, once there is one that was not taken; None after the last."""
        while self._frame is None and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        frame, self._frame = self._frame, None
        return frame


def screen(view: Watched) -> Group:
    """What the terminal shows: a line of figures, and the emotions of each face."""
    figures = (
        f"{view.rate():.0f} frames/s   {view.round_trip_ms():.1f} ms   "
        f"{view.answered} answered   {view.superseded} overtaken   {view.failed} failed"
    )
    parts: list[Text | Table] = [Text(figures, style="dim")]
    if view.last is not None:
        if view.last.face_detected is False:
            parts.append(Text("no face found", style="yellow"))
        faces = [
            (face.face_id, face.emotion_name, face.confidence, face.probabilities) for face in view.last.faces
        ]
        for number, emotion, confidence, probabilities in faces or [
            (None, view.last.emotion_name, view.last.confidence, view.last.probabilities)
        ]:
            name = f"face {number}  " if number is not None else ""
            parts.append(Text(f"{name}{emotion} {percent(confidence)}", style="bold"))
            bars = Table.grid(padding=(0, 2))
            for label, share in probabilities.items():
                bars.add_row(label, Bar(1, 0, share, width=40), percent(share))
            parts.append(bars)
    if view.last_error is not None:
        parts.append(Text(view.last_error.message, style="red"))
    return Group(*parts)
