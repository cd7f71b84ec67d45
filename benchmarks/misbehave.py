"""What other clients notice while one client misbehaves: their p99, against the quiet one.

The others are `OTHERS` clients with one request in flight at a modest rate each; the offender is a process of its own,
so that what it spends on being a nuisance does not slow the measurement's event loop, only the machine.
"""

from __future__ import annotations

import asyncio
import base64
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np

from benchmarks.load import LoadPlan, LoadResult, answered, load
from benchmarks.target import Target, started_service
from benchmarks.wire import build_frame
from benchmarks.workload import make_workload

_NOT_READING, _CONNECTING = "does not read", "connects in a loop"

OTHERS = 8
RATE = 100.0

_HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "
    + base64.b64encode(bytes(16))
    + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
)

# Frames of six bytes, with a mask of zeros (RFC 6455, section 5.2).
_EMPTY_PONG, _EMPTY_BEGINNING, _EMPTY_FRAGMENT, _EMPTY_END = (
    bytes([first, 0x80]) + bytes(4) for first in (0x8A, 0x01, 0x00, 0x80)
)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """The others' latency in milliseconds while one client did this, and in the quiet right before."""

    offence: str
    quiet_p50: float
    quiet_p99: float
    p50: float
    p99: float
    failed: int

    @classmethod
    def between(cls, offence: str, quiet: LoadResult, disturbed: LoadResult) -> Disturbance:
        """What others noticed, from their load before and meanwhile."""
        before, meanwhile = quiet.latency, disturbed.latency
        return cls(offence, before.p50, before.p99, meanwhile.p50, meanwhile.p99, disturbed.failed)

    @property
    def factor(self) -> float:
        """How many times the quiet p99."""
        return self.p99 / self.quiet_p99


async def _open(address: tuple[str, int]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(_HANDSHAKE)
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def _send_for_ever(address: tuple[str, int], frames: bytes, *, read: bool) -> None:
    """Send as fast as the service takes it, and read what comes back or leave it."""
    while True:
        reader, writer = await _open(address)

        async def swallow(reader: asyncio.StreamReader = reader) -> None:
            while await reader.read(2**16):
                pass

        swallowing = asyncio.create_task(swallow()) if read else None
        try:
            while True:
                writer.write(frames)
                await writer.drain()
        except ConnectionError:
            writer.close()  # the service has had enough; come again
        finally:
            if swallowing is not None:
                swallowing.cancel()


def _huge_image() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), np.uint8)
    return build_frame(cv2.imencode(".jpg", noise)[1].tobytes(), text=False)


async def _connect_in_a_loop(address: tuple[str, int]) -> None:
    while True:
        try:
            _, writer = await _open(address)
            writer.transport.abort()
        except (ConnectionError, asyncio.IncompleteReadError):
            await asyncio.sleep(0)


# What is sent for ever, or what else is done.
_FRAMES: dict[str, Callable[[], bytes]] = {
    "floods": lambda: make_workload("64x64").requests[0].frame * 32,
    "huge images": _huge_image,
    "garbage": lambda: build_frame(b"garbage", text=True) * 1000,
    "empty frames": lambda: build_frame(b"", text=True) * 4000,
    "pongs": lambda: _EMPTY_PONG * 10_000,
    "empty fragments": lambda: _EMPTY_BEGINNING + _EMPTY_FRAGMENT * 10_000 + _EMPTY_END,
    _NOT_READING: lambda: build_frame(b'{"command": "model_info"}', text=True) * 1000,
}
OFFENCES = (*_FRAMES, _CONNECTING)


def _offend(offence: str, address: tuple[str, int]) -> None:
    # It stands for another machine: what the service does for it counts, what it does itself does not.
    os.nice(10)
    if offence == _CONNECTING:
        asyncio.run(_connect_in_a_loop(address))
    else:
        asyncio.run(_send_for_ever(address, _FRAMES[offence](), read=offence != _NOT_READING))


def measure_misbehaviour(
    model: Path, names: list[str], repeats: int, seconds: float
) -> list[list[Disturbance]]:
    """Each offence against a fresh service."""
    series = []
    for name in names:
        with started_service(model) as target:
            series.append(disturb(target, name, repeats, seconds, _offend, name, _address(target)))
    return series


def disturb(
    target: Target,
    name: str,
    repeats: int,
    seconds: float,
    offend: Callable[..., None],
    *arguments: object,
) -> list[Disturbance]:
    """Predictions at a modest rate in the quiet, and right after while `offend` runs in a process of its own.

    Args:
        target: the service.
        name: what is done to it.
        repeats: how many times both are measured, in turns.
        seconds: how long each is.
        offend: a module's function, which does not end by itself.
        arguments: what it is called with.

    Raises:
        Unanswered: predictions had no right answer even in the quiet.
    """
    workload = make_workload("64x64")
    plan = LoadPlan(clients=OTHERS, rate=RATE, seconds=seconds)
    context = multiprocessing.get_context("spawn")
    results = []
    for _ in range(repeats):
        quiet = answered(load(target, workload, plan))
        offender = context.Process(target=offend, args=arguments, daemon=True)
        offender.start()
        try:
            disturbed = load(target, workload, plan)
        finally:
            offender.kill()
            offender.join()
        results.append(Disturbance.between(name, quiet, disturbed))
    return results


def _address(target: Target) -> tuple[str, int]:
    parts = urlsplit(target.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port
