"""Replicas behind HAProxy, each in a network namespace of its own, with one PostgreSQL: nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_no_request_fails_and_none_is_stored_twice_while_replicas_come_and_go() -> None:
    """One is killed, all reload, all are stopped and started, one is cut off: clients of the library notice nothing."""
    command = "replicas --replicas 2 --seconds 1.5 --rate 40 --clients 8 --no-scale --json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["failover"]
    assert [phase["failed"] for phase in found["phases"]] == [0] * 7
    assert (found["missing"], found["twice"], found["errors"]) == (0, 0, [])
    assert found["acknowledged"] > 0
