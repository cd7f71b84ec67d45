"""`visionai predict`: the emotions in images."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from client.async_client import AsyncClient, Detect
from client.cli import options
from client.cli.annotate import Annotator
from client.cli.exit_codes import ExitCode
from client.cli.inputs import Image, InputError, collect
from client.cli.output import Format, Writer, writer_for
from client.results import Prediction


def predict(
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, patterns such as 'photos/*.jpg', file: URLs, or - for stdin."),
    ] = None,
    folder: Annotated[
        list[Path] | None, typer.Option("--folder", help="All images of a folder.", metavar="DIR")
    ] = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Folders with their subfolders.")
    ] = False,
    format: options.FormatChoice = Format.TABLE,
    as_json: options.FormatJson = False,
    annotate: Annotated[
        Path | None,
        typer.Option(
            "--annotate", help="Copies with boxes and labels drawn, into this folder.", metavar="OUT"
        ),
    ] = None,
    detect: Annotated[
        Detect,
        typer.Option(
            "--detect",
            help="Look for faces; always: no face is an error; never: the image is a face crop.",
        ),
    ] = "auto",
    max_faces: Annotated[
        int | None,
        typer.Option(
            "--max-faces", min=1, max=64, help="At most this many faces, largest first; default 16."
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=256, help="Images in flight at once.")
    ] = 16,
    url: options.Url = options.URL,
    token: options.Token = None,
    timeout: options.Timeout = options.TIMEOUT,
) -> None:
    """Recognise the emotions in images.

    On a terminal, folders show a progress bar with rate and remaining time.

    Example: visionai predict face.jpg photos --format csv
    """
    chosen = Format.JSON if as_json else format
    try:
        found = collect(images or [], folder or [], recursive=recursive, read_stdin=_read_stdin)
        annotator = Annotator(annotate, found) if annotate is not None else None
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    client = options.client_for(url, token, timeout)
    failed = asyncio.run(_predict(client, found, chosen, annotator, detect, max_faces, concurrency))
    if failed:
        raise typer.Exit(ExitCode.IMAGE_FAILED)


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise InputError("- is standard input, which is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"standard input cannot be read: {error.strerror}") from None


async def _annotated(annotator: Annotator, image: Image, prediction: Prediction) -> bool:
    """Write the annotated copy of an image. False, and a line on standard error, where that fails."""
    try:
        await asyncio.to_thread(annotator.draw, image, prediction)
    except OSError as error:
        print(f"visionai: no annotated copy of {image.name}: {error.strerror or error}", file=sys.stderr)
        return False
    return True


async def _predict(
    client: AsyncClient,
    images: Sequence[Image],
    chosen: Format,
    annotator: Annotator | None,
    detect: Detect,
    max_faces: int | None,
    concurrency: int,
) -> int:
    """Predict and write all images; how many failed."""
    answered = failed = 0
    started = time.perf_counter()
    async with client:
        labels = [emotion.name for emotion in await client.emotions()] if chosen is Format.CSV else []
        writer: Writer = writer_for(chosen, sys.stdout, labels)
        outcomes = client.predict_many(
            [image.source for image in images],
            concurrency=concurrency,
            # auto is what the server does by itself; servers of protocol 1 know no such field
            detect=None if detect == "auto" else detect,
            max_faces=max_faces,
        )
        try:
            with _progress(chosen, len(images)) as progress:
                task = progress.add_task("predicting", total=len(images))
                async with aclosing(outcomes):
                    async for outcome in outcomes:
                        image = images[outcome.index]
                        writer.write(image.name, outcome)
                        answered += 1
                        if outcome.prediction is None:
                            failed += 1
                        elif annotator is not None:
                            failed += not await _annotated(annotator, image, outcome.prediction)
                        progress.advance(task)
        finally:
            # Also where something ended it: what was answered until then is not lost.
            if answered:
                writer.close()
    if len(images) > 1:
        seconds = time.perf_counter() - started
        print(
            f"{len(images)} images in {seconds:.1f} s ({len(images) / seconds:.0f}/s), {failed} failed",
            file=sys.stderr,
        )
    return failed


def _progress(chosen: Format, count: int) -> Progress:
    console = Console(stderr=True)
    # Lines that stream to the same terminal would run through the bar.
    streams = chosen is not Format.TABLE and sys.stdout.isatty()
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=count == 1 or streams or not console.is_terminal,
    )


class _RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """The rate; nothing before the first images."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.0f}/s" if speed is not None else "")
