"""The service with one part changed, to see what that part costs: `python -m benchmarks.variants NAME [FILE]`.

These are no features of the service; they exist so that there is something to compare it with.

* ``no-store``: predictions are handed to a store that drops them: no encoding, no journal, no database.
* ``profiled FILE``: every stage of the hot path is timed, see `stages`. The worker writes what it found to FILE when
  it ends. Takes one worker.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.processes.signals import held_back

if TYPE_CHECKING:
    from service.store.records import PredictionRecord


class DroppingStore:
    """Takes records over and forgets them."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def record(self, records: Sequence[PredictionRecord]) -> bool:
        """Says that they will be stored, so that replies are as long as ever."""
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _without_store() -> None:
    worker: Any = importlib.import_module("service.processes.worker")
    open_store = worker.open_store
    # The real store is opened too: memory and start-up stay alike.
    worker.open_store = lambda *args, **options: DroppingStore(open_store(*args, **options))


def _profiled(file: Path) -> None:
    from benchmarks.stages import Stages

    workers: Any = importlib.import_module("service.processes.workers")
    run_worker = workers.run_worker
    stages = Stages()

    def run(*args: Any) -> int:
        stages.install()
        try:
            code: int = run_worker(*args)
            return code
        finally:
            file.write_bytes(stages.to_json())

    workers.run_worker = run


def main(arguments: Sequence[str]) -> int:
    """Start the variant; returns the service's exit code."""
    # As the service does before it imports numpy.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        with held_back(signal.SIGINT):  # as the service does while libraries load
            match list(arguments):
                case ["no-store"]:
                    _without_store()
                case ["profiled", file]:
                    _profiled(Path(file))
                case _:
                    print("usage: python -m benchmarks.variants no-store | profiled FILE", file=sys.stderr)
                    return 2
    except KeyboardInterrupt:
        return 130
    from service.__main__ import main as serve

    sys.argv = ["python -m service"]
    return serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
