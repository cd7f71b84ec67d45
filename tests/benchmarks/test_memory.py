"""The server's memory is what it takes alone, though the generator beside it maps the same files."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.memory import pss_bytes
from benchmarks.target import Target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc")

MB = 2**20
FILE_MB = 16

# Says when it is there; told so, it and its child look at every page of a file, and it says so.
SCRIPT = f"""
import mmap, os, sys
print(flush=True)
input()
with open(sys.argv[1], "rb") as file:
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    ready, told = os.pipe()
    if not os.fork():
        sum(pages[::{mmap.PAGESIZE}])
        os.write(told, b".")
    else:
        sum(pages[::{mmap.PAGESIZE}])
        os.read(ready, 1)
        print(flush=True)
    sys.stdin.read()
"""


def test_pages_that_others_map_are_the_servers_and_count_once(tmp_path: Path) -> None:
    """Two processes of the server and this one look at one file: the server's memory grows by the file, whoever else
    maps it."""
    path = tmp_path / "library"
    path.write_bytes(bytes(FILE_MB * MB))
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        target = Target("ws://127.0.0.1:1", process.pid)
        process.stdout.readline()
        before = target.usage()
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        alone = target.usage()
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as pages:
            assert sum(pages[:: mmap.PAGESIZE]) == 0
            beside = target.usage()
    assert before is not None
    assert alone is not None
    assert beside is not None
    assert alone.pss_mb - before.pss_mb == pytest.approx(FILE_MB, abs=2)
    assert beside.pss_mb == pytest.approx(alone.pss_mb, abs=0.5)
    assert alone.rss_mb - before.rss_mb > 2 * FILE_MB


def test_a_process_that_has_ended_takes_nothing() -> None:
    """A worker may end while it is looked at."""
    with subprocess.Popen(["true"]) as process:
        pass
    assert pss_bytes([process.pid]) == 0
