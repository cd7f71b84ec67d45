"""`visionai top`: a server's rate, latency, queue and batches, live in the terminal."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated
from urllib.parse import urljoin, urlsplit

import orjson
import typer
from rich.bar import Bar
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from websockets.headers import build_authorization_basic
from websockets.proxy import parse_proxy
from websockets.uri import parse_uri

from client.async_client import AsyncClient
from client.causes import where
from client.cli import options
from client.cli.metrics import STAGES, Interval, Reading, between
from client.cli.output import counted, percent, sparkline
from client.errors import (
    CannotConnect,
    ConnectionFailed,
    DeadlineExceeded,
    InternalError,
    ProtocolViolation,
    Unauthorized,
    Unavailable,
    VisionAIError,
)
from client.proxies import proxy_for
from client.results import Stats

_HISTORY = 60
_STATS_WINDOW_S = 3600.0


def top(
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            min=0.1,
            help="Seconds between readings.",
            metavar="SECONDS",
            callback=options.finite,
        ),
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="One reading, then end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for each reading.")] = False,
    url: options.Url = options.URL,
    token: options.Token = None,
    timeout: options.Timeout = options.TIMEOUT,
) -> None:
    """Watch a server: rate, latency by stage, queue, batch sizes, memory and CPU. Ctrl-C ends it.

    Reads /metrics on the server's port, and the server's statistics if it has any.

    Example: visionai top --once
    """
    asyncio.run(_top(options.client_for(url, token, timeout), interval, once, as_json, token))


async def _top(client: AsyncClient, interval: float, once: bool, as_json: bool, token: str | None) -> None:
    address = metrics_address(client.url)
    rates: deque[float] = deque(maxlen=_HISTORY)
    console = Console(markup=False)
    async with client:
        has_stats = not as_json and "stats" in (await client.connect()).commands
        authorization = _authorization(client.url, token)
        before, taken = await _read(address, authorization)
        # The whole screen while it is watched; a single reading stays in the terminal.
        with (
            Live(console=console, auto_refresh=False, screen=console.is_terminal)
            if not (once or as_json)
            else nullcontext() as live
        ):
            while True:
                await asyncio.sleep(interval)
                try:
                    after, now = await _read(address, authorization)
                    stats = await _stats(client) if has_stats else None
                except ConnectionFailed as error:
                    if live is None:
                        raise
                    # Who watches a server wants to see it come back.
                    live.update(Text(error.message, style="red"), refresh=True)
                    continue
                current = between(before, after, now - taken)
                before, taken = after, now
                rates.append(current.rate)
                if as_json:
                    print(orjson.dumps(asdict(current)).decode(), flush=True)
                elif live is None:
                    console.print(dashboard(client.url, current, rates, stats))
                else:
                    live.update(dashboard(client.url, current, rates, stats), refresh=True)
                if once:
                    return


async def _stats(client: AsyncClient) -> Stats | VisionAIError:
    """The statistics, or why there are none now: the rest is told all the same, as while a database is down."""
    try:
        return await client.stats(window_s=_STATS_WINDOW_S)
    except (DeadlineExceeded, InternalError, Unavailable) as error:
        return error


def metrics_address(url: str) -> str:
    """Where the metrics are: beside the WebSocket's path, on the same port. It is shown: without a password."""
    parts = urlsplit(url)
    scheme = "https" if parts.scheme == "wss" else "http"
    host = parts.netloc.rpartition("@")[2]
    return urljoin(f"{scheme}://{host}{parts.path or '/'}", "metrics")


def _authorization(url: str, token: str | None) -> str | None:
    """The header as the WebSocket's handshake has it; of both, the one for the service."""
    user = parse_uri(url).user_info
    if token is not None or user is None:
        return token and f"Bearer {token}"
    return build_authorization_basic(*user)


async def _read(address: str, authorization: str | None) -> tuple[Reading, float]:
    """A reading, and when it was taken on the monotonic clock.

    Raises:
        CannotConnect, Unauthorized, ProtocolViolation: there are no metrics at the address.
    """
    status, body = await asyncio.to_thread(_get, address, authorization)
    taken = time.monotonic()
    if status in (401, 403):
        raise Unauthorized(f"{address} asks for a token, or refuses this one (HTTP {status})")
    if status != 200:
        raise CannotConnect(f"{address} has no metrics (HTTP {status})")
    try:
        return Reading.parse(body.decode()), taken
    except ValueError as error:
        raise ProtocolViolation(f"{address} does not answer with Prometheus metrics: {error}") from None


def _get(address: str, authorization: str | None) -> tuple[int, bytes]:
    connection = metrics_connection(address)
    try:
        headers = {"Authorization": authorization} if authorization else {}
        connection.request("GET", urlsplit(address).path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise CannotConnect(f"{address} does not answer: {error}") from None
    finally:
        connection.close()


def metrics_connection(address: str) -> http.client.HTTPConnection:
    """A connection for `address`, by the way that the WebSocket takes to the same server."""
    parts = urlsplit(address)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    host, port = parts.hostname or "", parts.port or kind.default_port
    proxy = proxy_for(address.replace("http", "ws", 1))
    if proxy is None:
        return kind(host, port, timeout=10)
    way = parse_proxy(proxy)
    if way.scheme != "http":
        raise CannotConnect(
            f"{address} cannot be read through a proxy of the kind {way.scheme}, only of http"
        )
    connection = kind(way.host, way.port, timeout=10)
    headers = {}
    if way.username is not None:
        headers["Proxy-Authorization"] = build_authorization_basic(way.username, way.password or "")
    connection.set_tunnel(host, port, headers)
    return connection


def dashboard(url: str, now: Interval, rates: deque[float], stats: Stats | VisionAIError | None) -> Group:
    """What the terminal shows."""
    head = Table.grid(padding=(0, 3))
    cells = [
        ("predictions/s", f"{now.rate:.0f}"),
        ("clients", _number(now.clients)),
        ("queue", _number(now.queue_depth)),
        ("batch size", f"{now.batch_size:.1f}" if now.batch_size is not None else "-"),
        ("to store", _number(now.store_pending)),
        ("memory", f"{now.memory_bytes / 2**20:.0f} MB" if now.memory_bytes is not None else "-"),
        ("CPU", percent(now.cpu_share) if now.cpu_share is not None else "-"),
    ]
    head.add_row(*(Text(name, style="dim") for name, _ in cells))
    head.add_row(*(Text(value, style="bold") for _, value in cells))

    latency = Table(box=None, pad_edge=False, header_style="dim")
    latency.add_column("latency in ms")
    for quantile in ("p50", "p90", "p99"):
        latency.add_column(quantile, justify="right")
    for stage in STAGES:
        values = now.stages.get(stage)
        latency.add_row(stage, *(f"{values[q]:.2f}" if values else "-" for q in ("p50", "p90", "p99")))

    parts: list[Text | Table] = [
        Text(where(url), style="bold"),
        head,
        Text(f"rate  {sparkline(rates)}"),
        latency,
    ]
    if now.predictions:
        emotions = Table.grid(padding=(0, 2))
        total = sum(now.predictions.values())
        for name, count in sorted(now.predictions.items(), key=lambda item: -item[1]):
            emotions.add_row(name, Bar(1, 0, count / total, width=30), percent(count / total))
        parts.append(emotions)
    if now.errors:
        errors = ", ".join(
            f"{code} {count / now.seconds:.1f}/s" for code, count in sorted(now.errors.items())
        )
        parts.append(Text(f"errors  {errors}", style="red"))
    if isinstance(stats, VisionAIError):
        parts.append(Text(f"last hour  {stats.message}", style="red"))
    elif stats is not None:
        mean = (
            f", mean confidence {percent(stats.mean_confidence)}" if stats.mean_confidence is not None else ""
        )
        parts.append(Text(f"last hour  {counted(stats.count, 'face')}{mean}"))
    return Group(*parts)


def _number(value: float | None) -> str:
    return f"{value:.0f}" if value is not None else "-"
