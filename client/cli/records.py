"""`visionai stats` and `visionai history`: what the server has stored."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Annotated

import typer
from rich.bar import Bar
from rich.console import Console
from rich.text import Text

from client.async_client import AsyncClient
from client.cli import options
from client.cli.output import Format, counted, percent, pretty, sparkline, without
from client.cli.queries import ask, plain_table
from client.cli.rows import write_rows
from client.results import Stats, StoredPrediction

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

_BAR_WIDTH = 24

_OTHERS_WIDTH = 48
"""Columns of the terminal that the table takes beside the counts over time, with short bars and long numbers."""

_PAGE = 200
"""Rows asked for at once."""


def seconds_of(duration: str) -> float:
    """``90s``, ``30m``, ``1h`` or ``7d`` in seconds; a bare number is seconds.

    Raises:
        typer.BadParameter: anything else, or nothing at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", duration)
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"{duration!r} is not a duration such as 90s, 30m, 1h or 7d")
    return float(found[1]) * _UNITS[found[2] or "s"]


def stats(
    window: Annotated[
        str,
        typer.Option(
            "--window", help="How far back: 90s, 30m, 1h, 7d; without a unit seconds.", metavar="DURATION"
        ),
    ] = "1h",
    buckets: Annotated[
        int,
        typer.Option(
            "--buckets",
            min=0,
            max=500,
            help="Draw each emotion's counts over so many parts of the window.",
            metavar="PARTS",
        ),
    ] = 0,
    as_json: options.Json = False,
    url: options.Url = options.URL,
    token: options.Token = None,
    timeout: options.Timeout = options.TIMEOUT,
) -> None:
    """Count the faces of the last hour by emotion, with mean confidence and latency.

    Example: visionai stats --window 24h --buckets 24
    """
    seconds = seconds_of(window)

    async def question(client: AsyncClient) -> Stats:
        return await client.stats(window_s=seconds, buckets=buckets)

    found = ask(options.client_for(url, token, timeout), question)
    if as_json:
        print(pretty(without(found.raw, "id", "type", "status")))
        return
    console = Console(markup=False)
    columns = ["Emotion", "Count", "Share", "", "Confidence", *(["Over time"] if buckets else [])]
    table = plain_table(*columns)
    table.columns[3].max_width = _BAR_WIDTH
    # The bars of the shares give way first; only what would not fit beside the other columns is folded.
    table.columns[-1].no_wrap = 0 < buckets <= console.width - _OTHERS_WIDTH
    for name, entry in sorted(found.emotions.items(), key=lambda item: -item[1].count):
        share = entry.count / found.count if found.count else 0.0
        confidence = percent(entry.mean_confidence) if entry.mean_confidence is not None else ""
        over_time = [sparkline([bucket.get(name, 0) for bucket in found.buckets])] if buckets else []
        bar = Bar(1, 0, share)
        table.add_row(name, str(entry.count), percent(share), bar, confidence, *over_time)
    console.print(table)
    latency = ", ".join(f"{name} {value:.2f} ms" for name, value in found.latency_ms.items())
    span = window if window[-1] in _UNITS else f"{window}s"
    total = f"{counted(found.count, 'face')} in the last {span}"
    console.print(Text(total + (f"; latency {latency}" if latency else "")))


def history(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many, latest first.")] = 20,
    format: options.FormatChoice = Format.TABLE,
    as_json: options.FormatJson = False,
    url: options.Url = options.URL,
    token: options.Token = None,
    timeout: options.Timeout = options.TIMEOUT,
) -> None:
    """Show this user's latest stored predictions. Needs a token, and a server that accepts tokens.

    Example: visionai history --limit 100 --format csv
    """
    rows = asyncio.run(_rows(options.client_for(url, token, timeout), limit))
    chosen = Format.JSON if as_json else format
    if not rows and token is None:
        Console(stderr=True).print(
            "Nothing: without --token only what the same connection has just made is shown.", highlight=False
        )
    if chosen is Format.TABLE:
        table = plain_table("Time", "Emotion", "Confidence", "Model", "Prediction")
        for row in rows:
            table.add_row(
                row.timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                row.emotion_name or "",
                percent(row.confidence) if row.confidence is not None else "",
                row.model_version_tag or "",
                str(row.prediction_id or ""),
            )
        Console(markup=False).print(table)
    else:
        write_rows(chosen, sys.stdout, [dict(row.raw) for row in rows])


async def _rows(client: AsyncClient, limit: int) -> list[StoredPrediction]:
    rows: list[StoredPrediction] = []
    cursor: str | None = None
    async with client:
        while len(rows) < limit:
            page = await client.history(limit=min(limit - len(rows), _PAGE), cursor=cursor)
            rows.extend(page.predictions)
            cursor = page.next
            if cursor is None:
                break
    return rows
