"""What the tests of `python -m benchmarks` share: running it, and a result of it that is known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.limit import LimitResult
from benchmarks.load import LoadPlan, LoadResult
from benchmarks.percentiles import Latency
from benchmarks.target import Usage

ROOT = Path(__file__).parents[2]

# What separates slow from stuck, on the slowest machine, in seconds.
TIMEOUT = 240 * float(os.environ.get("TEST_TIME_UNIT", "1"))

# A load that is over soon, and a reply that is counted as right.
SHORT = LoadPlan(clients=4, seconds=0.3, warmup=0.1, grace=0.2)
RIGHT = '{"status": "success", "emotion_name": "happy"}'

LIMIT = LimitResult("threads", 2, "64x64", 1, "never", 4000.0, 400.0, 0.0)
LOAD = LoadResult(
    size="64x64",
    framing="json",
    detect="never",
    clients=64,
    depth=1,
    rate=None,
    arrivals=None,
    deadline_ms=None,
    polling=False,
    seconds=2.0,
    succeeded=4000,
    errors={},
    wrong=0,
    throughput=2000.0,
    goodput=2000.0,
    latency=Latency(p50=10.0, p90=20.0, p99=30.0, p999=40.0, worst=50.0),
    bursts_ms=[],
    slowest_client_share=0.9,
    server_cpu_seconds=2.0,
    server_cpu_per_request_us=500.0,
    server=Usage(3.0, 200.0, 150.0),
    generator_cpu_seconds=1.0,
    others_cores=0.0,
)


def benchmark(*arguments: str, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    """Run `python -m benchmarks`."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@contextmanager
def group(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, of which nothing is left at the end."""
    with subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def ends_with_its_service(command: Sequence[str], *signals: int, gap: float = 0.0) -> None:
    """Run a load, send it the signals amid it: it must end as the last tells, and leave nobody behind."""
    with group(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        bench = psutil.Process(process.pid)
        while not any(each.status == psutil.CONN_ESTABLISHED for each in bench.net_connections()):
            assert process.poll() is None
            time.sleep(0.05)
        started = bench.children(recursive=True)
        for number in signals:
            process.send_signal(number)
            time.sleep(gap)
        process.wait(TIMEOUT)
        assert psutil.wait_procs(started, timeout=TIMEOUT)[1] == []
    assert process.returncode == 128 + signals[-1]


def results(*arguments: str) -> Any:
    """The JSON of a run that must end well, and without a callback that failed on the way."""
    ended = benchmark(*arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return json.loads(ended.stdout)
