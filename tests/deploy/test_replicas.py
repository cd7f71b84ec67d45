"""Replicas behind HAProxy, each in a network namespace of its own, with one PostgreSQL: nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
TIMEOUT = 60 * float(os.environ.get("TEST_TIME_UNIT", "1"))


def test_no_request_fails_and_none_is_stored_twice_while_replicas_come_and_go() -> None:
    """One is killed, all reload, all are stopped and started, one is cut off: clients of the library notice nothing."""
    command = "replicas --replicas 2 --seconds 2.5 --rate 40 --clients 8 --no-scale --json"
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


def marked(mark: str) -> list[str]:
    """The names of the processes that were started, by whatever way, with this in their environment, and have not
    ended."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if mark in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.name())  # here, for it may end while the others are looked at
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_benchmark_that_is_ended_leaves_no_process_behind(number: signal.Signals) -> None:
    """Replicas, HAProxy and PostgreSQL are gone; on SIGTERM by the time that the command is."""
    mark = str(uuid.uuid4())
    command = "replicas --replicas 2 --seconds 60 --no-scale"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *command.split()],
        cwd=ROOT,
        env=os.environ | {"TEST_MARK": mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        try:
            deadline = time.monotonic() + TIMEOUT
            # PostgreSQL and HAProxy start a process after the other.
            while "haproxy" not in (running := marked(mark)) or len(running) <= 5:
                assert process.poll() is None, process.stdout and process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(number)
            process.wait(TIMEOUT)
        finally:
            process.kill()  # or what fails above waits for minutes until the benchmark is through
        deadline = time.monotonic() + (0 if number == signal.SIGTERM else TIMEOUT)
        while left := marked(mark):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
