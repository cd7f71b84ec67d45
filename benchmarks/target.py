"""The server under test: started as a process of its own, and measured through the operating system."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil

from benchmarks.memory import pss_bytes, tells_pages
from service.modelfile import resolve_model

ROOT = Path(__file__).parents[1]
_STOP_SECONDS = 30

# What ends a benchmark: Ctrl-C, `kill`, a terminal that is closed. Windows has no such thing as the last.
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

# Whatever they are in the environment.
SET_BY_US = (
    "HOST",
    "PORT",
    "DATABASE_URL",
    "JOURNAL_DIR",
    "LOG_LEVEL",
    "MODEL_PATH",
    "CONTROL_SOCKET",
    "TLS_CERTIFICATE",
    "TLS_KEY",
)

# Some servers end before their children, and some never tell them.
_ORPHAN_SECONDS = 5

_Told = TypeVar("_Told")


@dataclass(frozen=True, slots=True)
class Usage:
    """What the server's processes use, together: CPU seconds since its start, memory in MB now.

    The seconds are also of workers that have ended and were replaced. `pss_mb` counts what they share once, and whole
    where the generator or another program maps the same file: it is the PSS that they have alone (see `memory`). Where
    the system does not tell shared pages apart, as only Linux does, it is `rss_mb`.
    """

    cpu_seconds: float
    rss_mb: float
    pss_mb: float


def check_url(url: str) -> None:
    """Raise ValueError unless `url` is the address of a server that can be measured: ws://HOST:PORT."""
    parts = urlsplit(url)
    if parts.scheme != "ws" or not parts.hostname:
        raise ValueError(f"{url!r} is not of the form ws://HOST:PORT")
    _ = parts.port  # raises ValueError where it is no number


@dataclass(frozen=True, slots=True)
class Target:
    """A server: its address, and its process where it is one of ours."""

    url: str
    pid: int | None = None

    def usage(self) -> Usage | None:
        """The usage of the process and its children; None for a server that someone else started, or that has ended.

        Takes some 40 ms, most of them for the memory: for between loads, since an event loop stands still meanwhile.
        """
        family = self._family()
        if not family:
            return None
        rss = 0
        for process in family:
            with suppress(psutil.NoSuchProcess):
                rss += process.memory_info().rss
        pss = pss_bytes([process.pid for process in family]) if tells_pages() else rss
        return Usage(_cpu_seconds(family), rss / 2**20, pss / 2**20)

    def cpu_seconds(self) -> float | None:
        """The CPU time alone, in a few milliseconds: it looks at every process of the machine for the children."""
        family = self._family()
        return _cpu_seconds(family) if family else None

    def _family(self) -> list[psutil.Process]:
        """The process and its children; none where it is not ours, or has ended."""
        if self.pid is None:
            return []
        try:
            parent = psutil.Process(self.pid)
            # One that has ended and was not waited for yet has lost its children, and their times.
            return (
                [] if parent.status() == psutil.STATUS_ZOMBIE else [parent, *parent.children(recursive=True)]
            )
        except psutil.NoSuchProcess:
            return []


def of_ours(told: _Told | None) -> _Told:
    """What a server of ours tells of itself.

    Raises:
        RuntimeError: it has ended, and tells nothing.
    """
    if told is None:
        raise RuntimeError("the server has ended")
    return told


def _cpu_seconds(family: Sequence[psutil.Process]) -> float:
    """Of these, and of their children that have ended: a worker that is replaced takes nothing with it."""
    seconds = 0.0
    for process in family:
        with suppress(psutil.NoSuchProcess):
            seconds += sum(
                process.cpu_times()[:4]
            )  # user and system, and the same of children that have ended
    return seconds


@contextmanager
def started_service(
    model: Path | None = None,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = ("-m", "service"),
) -> Iterator[Target]:
    """Run the service on a free port, by default with an SQLite database in a folder that goes away.

    Args:
        model: what to serve; None for the service's default.
        environment: further settings.
        command: arguments of Python; another one than the service itself must print the service's line when ready.

    Raises:
        RuntimeError: the service did not become ready; holds what it printed.
        StartupError: there is no such model.
    """
    with tempfile.TemporaryDirectory(prefix="visionai-bench-") as folder:
        settings = {
            "HOST": "127.0.0.1",
            "PORT": "0",
            "DATABASE_URL": f"sqlite:///{folder}/bench.db",
            "JOURNAL_DIR": f"{folder}/journal",
            "LOG_LEVEL": "WARNING",
            # It would be found there in place of the service that runs in the same folder, and take it along.
            "CONTROL_SOCKET": "",
            # The load generator does not speak it.
            "TLS_CERTIFICATE": "",
            "TLS_KEY": "",
        }
        if model is not None:
            settings["MODEL_PATH"] = str(resolve_model(model, "--model").resolve())
        with running(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **settings, **(environment or {})},
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"ready on (ws://\S+:\d+)", line)
            if found is None:
                raise RuntimeError(f"the service did not start: {line.strip() or 'see above'}")
            yield Target(found.group(1), process.pid)


@contextmanager
def running(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is stopped with the context, whatever signals come. `options` are those of `subprocess.Popen`."""
    process = None
    try:
        with hearing_later():  # in the midst of that there would be a process that nobody knows of
            process = subprocess.Popen(command, text=True, **options)
        yield process
    finally:
        if process is not None:
            try:
                stop(process)
            finally:
                if process.poll() is None:  # a second signal came before that could hold it back
                    stop(process)
                if process.stdout is not None:
                    process.stdout.close()


def stop(process: subprocess.Popen[str]) -> None:
    """End a process and wait for it. One that does not end in time is killed, and so is what it leaves behind.

    A signal to this process is heard after that: it would leave the other running, and whoever waits for that hangs.
    """
    with hearing_later():
        _stop(process)


@contextmanager
def hearing_later() -> Iterator[None]:
    """What would end this process does so after this.

    `service.processes.signals.held_back` holds back what comes to the calling thread; here others run, which would hear
    it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # which alone hears signals
        return
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])


def _stop(process: subprocess.Popen[str]) -> None:
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, left = psutil.wait_procs(children, timeout=_ORPHAN_SECONDS)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.kill()
