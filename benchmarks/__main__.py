"""Command line of the benchmarks: `python -m benchmarks --help`."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.limit import LimitResult, measure_limit
from benchmarks.load import LoadPlan, LoadResult, run_load
from benchmarks.target import Target, started_service
from benchmarks.wire import ConnectionLost
from benchmarks.workload import SIZES, make_workload
from service.cpus import available_cpus
from service.settings import DEFAULT_MODEL

_OUT = Path(__file__).parent / "out"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
# Wide enough for the load table also where output goes to a file.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
T = TypeVar("T")

SizeOption = Annotated[str, typer.Option(help=f"Image size: {', '.join(SIZES)}.")]
SecondsOption = Annotated[float, typer.Option(min=0.2, help="Measured seconds, after a warm-up.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback(invoke_without_command=True)
def short(context: typer.Context) -> None:
    """Measure the limit of this machine and the service under load.

    Without a command: a short run of both, written to benchmarks/out/results.json. It starts the service itself.

    \b
    python -m benchmarks
    python -m benchmarks limit --size 640x480
    python -m benchmarks load --clients 64 --seconds 10
    python -m benchmarks load --rate 1000 --url ws://127.0.0.1:8000
    """
    if context.invoked_subcommand is not None:
        return
    cpus = available_cpus()
    limits = [measure_limit(DEFAULT_MODEL, size, 1, "threads", cpus, 2.0) for size in SIZES]
    _print_limits(limits)
    loads: list[tuple[str, LoadResult]] = []
    with started_service() as target:
        for size in SIZES:
            for clients in (1, 64):
                plan = LoadPlan(clients=clients, seconds=3.0)
                loads.append((size, _run(run_load(target, make_workload(size, "json"), plan))))
    _print_loads(loads)
    _OUT.mkdir(exist_ok=True)
    path = _OUT / "results.json"
    results = {
        "machine": {"cpus": cpus, "processor": platform.machine(), "python": platform.python_version()},
        "limit": [asdict(result) for result in limits],
        "load": [{"size": size} | asdict(result) for size, result in loads],
    }
    path.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"written to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")


@app.command()
def limit(
    size: SizeOption = "64x64",
    batch: Annotated[int, typer.Option(min=1, help="Images per run of the model.")] = 1,
    workers: Annotated[str, typer.Option(help="threads or processes.")] = "threads",
    count: Annotated[int, typer.Option(min=0, help="How many; 0 takes one per CPU.")] = 0,
    model: Annotated[Path, typer.Option(help="The ONNX file.")] = DEFAULT_MODEL,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """The bare loop of decoding and inference on all cores: what the machine can do."""
    _check_size(size)
    if workers not in ("threads", "processes"):
        raise typer.BadParameter("threads or processes", param_hint="--workers")
    result = measure_limit(model, size, batch, workers, count or available_cpus(), seconds)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        _print_limits([result])


@app.command()
def load(
    size: SizeOption = "64x64",
    clients: Annotated[int, typer.Option(min=1, help="Connections.")] = 64,
    depth: Annotated[int, typer.Option(min=1, help="Requests in flight per connection, closed loop.")] = 1,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Open loop: Poisson arrivals per second.")
    ] = None,
    binary: Annotated[
        bool, typer.Option("--binary", help="Send binary frames instead of base64 in JSON.")
    ] = False,
    url: Annotated[str | None, typer.Option(help="A running server; otherwise one is started.")] = None,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Clients over WebSocket: throughput, latency, errors, and what the server and the generator spend."""
    _check_size(size)
    plan = LoadPlan(clients=clients, depth=depth, rate=rate, seconds=seconds)
    workload = make_workload(size, "binary" if binary else "json")
    if url is not None:
        result = _run(run_load(Target(url), workload, plan))
    else:
        with started_service() as target:
            result = _run(run_load(target, workload, plan))
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        _print_loads([(size, result)])
    if result.errors or result.wrong:
        raise typer.Exit(1)


def _check_size(size: str) -> None:
    if size not in SIZES:
        raise typer.BadParameter(f"one of {', '.join(SIZES)}", param_hint="--size")


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    if sys.platform == "win32":
        return asyncio.run(coroutine)
    import uvloop

    return uvloop.run(coroutine)


def _print_limits(results: list[LimitResult]) -> None:
    table = Table(
        "size", "workers", "batch", "images/s", "CPU µs/image", title="limit: decode + run, no network"
    )
    for result in results:
        table.add_row(
            result.size,
            f"{result.count} {result.workers}",
            str(result.batch),
            f"{result.throughput:,.0f}",
            f"{result.cpu_per_image_us:.0f}",
        )
    console.print(table)


def _print_loads(results: list[tuple[str, LoadResult]]) -> None:
    table = Table(title="load: clients over WebSocket, predictions stored")
    for column in (
        "size",
        "clients",
        "rate",
        "req/s",
        "p50 ms",
        "p90",
        "p99",
        "p99.9",
        "errors",
        "CPU µs/req",
    ):
        table.add_column(column)
    for column in ("PSS MB", "generator CPU"):
        table.add_column(column)
    for size, result in results:
        times = result.latency
        cpu = result.server_cpu_per_request_us
        table.add_row(
            size,
            str(result.clients),
            "closed" if result.rate is None else f"{result.rate:,.0f}",
            f"{result.throughput:,.0f}",
            *(f"{value:.2f}" for value in (times.p50, times.p90, times.p99, times.p999)),
            str(sum(result.errors.values()) + result.wrong),
            "-" if cpu is None else f"{cpu:.0f}",
            "-" if result.server is None else f"{result.server.pss_mb:.0f}",
            f"{result.generator_cpu_seconds / result.seconds:.0%} of a core",
        )
    console.print(table)


def main() -> None:
    """Run the command line; a server that cannot be reached is one line and exit code 3."""
    try:
        app()
    except (ConnectionLost, RuntimeError) as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
