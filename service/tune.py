"""`python -m service tune`: measure what suits this machine thoroughly, show it, and keep it unless it is chance."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from service.engine.calibration import STEADY, Calibration, apply, cache_file, keep, measure_apart
from service.errors import StartupError
from service.modelfile import resolve_model
from service.processes.cpus import available_cpus
from service.settings import Settings


def tune(settings: Settings) -> None:
    """Measure, print the table and what follows from it, and keep the choice unless it is chance.

    Raises:
        StartupError: the model or the provider that was asked for cannot be used, or the table cannot be printed.
    """
    path, cpus = resolve_model(settings.model_path), available_cpus()
    with _bar() as bar:
        task = bar.add_task("measuring", total=1.0)

        def progress(share: float) -> None:
            bar.update(task, completed=share, refresh=True)

        found = measure_apart(path, settings.provider, cpus, thorough=True, progress=progress)
    cache = cache_file(path, settings.provider, cpus)
    if found.chosen.steadiness < STEADY:
        reason: str | None = "the machine is busy, and the choice is chance; tune it when it is not"
    else:
        reason = keep(cache, found.chosen)
    chosen = apply(settings, found.chosen, cpus)
    outcome = f"kept in {cache}" if reason is None else f"not kept: {reason}"
    console = Console(markup=False, highlight=False)
    try:
        console.print(table(found))
        for provider, said in {**found.agreements, **found.left_out}.items():
            console.print(f"{provider}: {said}")
        console.print(
            f"PROVIDER={chosen.provider} WORKERS={chosen.workers} EXECUTORS={chosen.executors} "
            f"THREADS={chosen.threads} MAX_BATCH={chosen.max_batch}; {outcome}"
        )
    except OSError as exc:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StartupError(f"the table cannot be printed ({exc.strerror}); the choice is {outcome}") from None


def _bar() -> Progress:
    """On a terminal. Without a thread that refreshes it, and stderr left as it is: measuring forks."""
    errors = Console(stderr=True)
    return Progress(
        console=errors,
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not errors.is_terminal,
    )


def table(found: Calibration) -> Table:
    """What was measured, the choice marked."""
    shown = Table(
        title="the model alone, on all CPUs",
        caption="> is chosen, see service.engine.calibration",
    )
    shown.add_column("")
    shown.add_column("provider")
    for name in ("sessions", "threads each", "batch", "images/s", "ms per run"):
        shown.add_column(name, justify="right")
    for each in found.measured:
        shown.add_row(
            ">" if each == found.chosen else "",
            each.provider,
            str(each.sessions),
            str(each.threads),
            str(each.batch),
            f"{each.images_per_second:,.0f}",
            f"{each.run_ms:.2f}",
        )
    return shown
