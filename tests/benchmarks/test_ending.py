"""A benchmark that is ended ends what it started, however often it is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks import variants
from benchmarks.target import started_service, stop
from tests.benchmarks.harness import ROOT, TIMEOUT, ends_with_its_service

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


@pytest.mark.parametrize("ends", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_heard_when_the_process_has_been_stopped(ends: str) -> None:
    """One that comes while it ends would leave it running, and whoever waits for it would hang."""
    # It says that it was told to end, by a signal to the one who told it; and it needs a moment for it.
    script = f"""
import os, signal, sys
def end(number, _):
    os.kill(os.getppid(), signal.{ends})
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
print(flush=True)
signal.pause()
"""

    class Told(Exception):
        pass

    def tell(*_: object) -> None:
        raise Told

    number = getattr(signal, ends)
    before = signal.signal(number, tell)
    try:
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            with pytest.raises(Told):
                stop(process)
            assert process.poll() == 7
    finally:
        signal.signal(number, before)


def test_a_signal_that_comes_while_the_service_is_started_does_not_leave_it_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is heard when there is somebody who stops what has been started."""
    started: list[subprocess.Popen[str]] = []

    class Told(Exception):
        pass

    def tell(*_: object) -> None:
        raise Told

    class Starting(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("benchmarks.target.subprocess.Popen", Starting)
    before = signal.signal(signal.SIGTERM, tell)
    try:
        with pytest.raises(Told), started_service(command=("-c", "import time; time.sleep(600)")):
            pass
        (process,) = started
        assert process.poll() is not None
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in started:
            process.kill()


@pytest.fixture
def common_folder() -> Iterator[Path]:
    """One that PostgreSQL reaches, which as root runs as another user: pytest's own every session of it closes anew."""
    with tempfile.TemporaryDirectory(prefix="visionai-test-") as folder:
        yield Path(folder)


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["process", "group"])
def test_a_signal_while_postgresql_is_started_leaves_nothing_of_it(
    send: Callable[[int, int], None], common_folder: Path
) -> None:
    """Neither a server nor its folder, though what starts it may be ended before it can tell of it."""
    script = """
import signal, sys
from benchmarks.persistence import started_postgresql
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
with started_postgresql():
    signal.pause()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(common_folder)},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        begun = False
        try:
            while not begun:
                assert process.poll() is None
                lines = [each.info["cmdline"] or () for each in psutil.process_iter(["cmdline"])]
                # The server, and no longer what makes its folder: it has a session of its own.
                begun = any("-k" in line and str(common_folder) in " ".join(line) for line in lines)
            send(process.pid, signal.SIGTERM)
            process.wait(TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert list(common_folder.glob("visionai-pg-*")) == []
    commands = [" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"])]
    assert [command for command in commands if str(common_folder / "visionai-pg-") in command] == []


@pytest.mark.parametrize("variant", [("no-store",), ("profiled", "stages.json")])
def test_an_interrupt_while_a_variant_of_the_service_loads_is_no_traceback(
    variant: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C reaches it as it does the service, which ends with 130."""

    def loading(_: str) -> SimpleNamespace:
        signal.raise_signal(signal.SIGINT)
        return SimpleNamespace(open_store=None, run_worker=None)

    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # which it would set for all tests
    monkeypatch.setattr("benchmarks.variants.importlib.import_module", loading)
    assert variants.main(variant) == 130


@pytest.mark.parametrize("gap", [0.001, 0.02])
@pytest.mark.parametrize("ends", ["SIGINT", "SIGTERM"])
def test_a_second_signal_does_not_leave_the_service_running(ends: str, gap: float) -> None:
    """Whatever it does when that comes, it ends, and nobody is left."""
    command = [sys.executable, "-m", "benchmarks", "load", "--clients", "2", "--seconds", "60"]
    number = getattr(signal, ends)
    ends_with_its_service(command, number, number, gap=gap)
