"""The benchmarks measure what they say: answers are looked at, and the server's usage is the server's."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve

from benchmarks.load import LoadPlan, run_load
from benchmarks.percentiles import latency
from benchmarks.target import Target
from benchmarks.workload import SIZES, make_workload

ROOT = Path(__file__).parents[2]
SHORT = LoadPlan(clients=4, seconds=0.3, warmup=0.1)


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m benchmarks`."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "extra", [(), ("--binary",), ("--rate", "100"), ("--size", "640x480", "--depth", "2")]
)
def test_a_load_run_reports_the_servers_answers_and_usage(extra: tuple[str, ...]) -> None:
    """Each way to load gets right answers only, and usage is read from the started process."""
    ended = benchmark("load", "--clients", "4", "--seconds", "0.5", "--json", *extra)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["succeeded"] > 10
    assert result["errors"] == {}
    assert result["wrong"] == 0
    assert result["server_cpu_seconds"] > 0
    assert result["server"]["pss_mb"] > 20
    assert 0 < result["latency"]["p50"] <= result["latency"]["p99"] <= result["latency"]["worst"]


@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_the_limit_is_measured_with_either_kind_of_worker(workers: str) -> None:
    """Threads and processes both do the work they report."""
    ended = benchmark("limit", "--workers", workers, "--seconds", "0.3", "--json")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["throughput"] > 1
    assert result["cpu_per_image_us"] > 10


def test_an_unreachable_server_is_one_line() -> None:
    """The error names the address, and the exit code is its own."""
    ended = benchmark("load", "--url", "ws://127.0.0.1:1", "--seconds", "0.2")
    assert ended.returncode == 3
    assert ended.stderr.count("\n") == 1
    assert "127.0.0.1:1" in ended.stderr


async def _load_against(reply: str, plan: LoadPlan = SHORT) -> tuple[dict[str, int], int, int]:
    """Errors, wrong answers and successes of a load on a server that gives one fixed reply."""

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome"}')
        async for _ in websocket:
            await websocket.send(reply)

    async with serve(handle, "127.0.0.1", 0, max_size=None, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        result = await run_load(Target(f"ws://127.0.0.1:{port}"), make_workload("64x64", "json"), plan)
    return result.errors, result.wrong, result.succeeded


async def test_errors_are_counted_by_code_and_not_as_successes() -> None:
    """A server that refuses everything has no throughput."""
    errors, _, succeeded = await _load_against('{"status": "error", "code": "overloaded"}')
    assert errors["overloaded"] > 0
    assert succeeded == 0


async def test_a_wrong_emotion_is_counted() -> None:
    """A server that answers fast but wrongly is found out."""
    _, wrong, succeeded = await _load_against('{"status": "success", "emotion_name": "sad"}')
    assert wrong == succeeded > 0


async def test_a_stall_is_charged_to_all_that_were_due_meanwhile() -> None:
    """In an open loop latency counts from when a request was due: a pause of 0.3 s shows in many latencies."""

    async def handle(websocket: ServerConnection) -> None:
        await websocket.send('{"type": "welcome"}')
        count = 0
        async for _ in websocket:
            count += 1
            if count == 20:
                await asyncio.sleep(0.3)
            await websocket.send('{"status": "success", "emotion_name": "happy"}')

    async with serve(handle, "127.0.0.1", 0, max_size=None, compression=None, max_queue=4) as server:
        port = server.sockets[0].getsockname()[1]
        plan = LoadPlan(clients=1, rate=200, seconds=1.0, warmup=0.0)
        result = await run_load(Target(f"ws://127.0.0.1:{port}"), make_workload("64x64", "json"), plan)
    assert result.latency.worst >= 290
    assert result.latency.p90 >= 100


def test_percentiles_are_in_milliseconds() -> None:
    """Of 1 to 100 ms the median is 50.5 ms."""
    result = latency([number / 1000 for number in range(1, 101)])
    assert result.p50 == pytest.approx(50.5)
    assert result.worst == pytest.approx(100)


def test_every_size_has_a_frame() -> None:
    """Binary frames are smaller than base64 in JSON, of the same image."""
    for size in SIZES:
        plain, binary = make_workload(size, "json"), make_workload(size, "binary")
        assert plain.image == binary.image
        assert len(binary.frame) < len(plain.frame)
