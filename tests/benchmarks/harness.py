"""What the tests of `python -m benchmarks` share: running it, and a result of it that is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.limit import LimitResult
from benchmarks.load import LoadPlan, LoadResult
from benchmarks.percentiles import Latency
from benchmarks.target import Usage

ROOT = Path(__file__).parents[2]

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


def benchmark(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `python -m benchmarks`."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def results(*arguments: str) -> Any:
    """The JSON of a run that must end well, and without a callback that failed on the way."""
    ended = benchmark(*arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return json.loads(ended.stdout)
