"""The commands that measure throughput and latency, and the command line: `python -m benchmarks --help`."""

from __future__ import annotations

import signal
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Annotated

import orjson
import typer
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks.arrivals import Arrivals
from benchmarks.compare import against_limit
from benchmarks.limit import Workers, limit_bench
from benchmarks.load import LoadPlan, LoadResult, Unanswered, allow_open_files, answered
from benchmarks.load import load as run_one
from benchmarks.machine import describe_machine, describe_service
from benchmarks.options import (
    ALL_SIZES,
    EXIT_MISSED,
    EXIT_NO_SERVER,
    EXIT_USAGE,
    EXIT_WRONG,
    BinaryOption,
    ClientsOption,
    DetectOption,
    JsonOption,
    ModelOption,
    PatienceOption,
    PollingOption,
    RepeatsOption,
    SecondsOption,
    SizeOption,
    SizesOption,
    UrlOption,
    console,
    errors,
    parse_numbers,
    parse_sizes,
    print_grid,
    require_folder,
    show,
    writing,
)
from benchmarks.profile import profile as measure_profile
from benchmarks.report import to_json, write_report, write_results
from benchmarks.scenarios import add_scenarios
from benchmarks.slo import Outcome, check_slo, parse_slo
from benchmarks.spread import spread
from benchmarks.sweep import CLIENTS, SHARES, Sweep, sweep_clients, sweep_rates
from benchmarks.tables import Grid, limit_grid, load_grid, profile_grid, ratio_grid, slo_grid, sweep_grid
from benchmarks.target import Target, started_service
from benchmarks.wire import ConnectionLost
from benchmarks.workload import make_workload
from client import ConnectionFailed, VisionAIError
from client.cli.options import finite
from client.cli.stdout import OutputFailed, checked_output
from service.errors import StartupError
from service.processes.cpus import available_cpus
from service.settings import DEFAULT_MODEL

OUT = Path(__file__).parent / "out"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def short(
    context: typer.Context,
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    patience: PatienceOption = 0.0,
    seconds: SecondsOption = 1.5,
    out: Annotated[Path, typer.Option(help="Where report.html and results.json go.")] = OUT,
) -> None:
    """Measure the limit of this machine and the service under load.

    Without a command: a short set of all, written to benchmarks/out/report.html and results.json. It starts the
    service itself.

    \b
    python -m benchmarks
    python -m benchmarks limit --size 640x480 --batch 1,8
    python -m benchmarks load --clients 64 --slo p99=30ms,rps=3000
    python -m benchmarks load --rate 1000 --arrivals burst --clients 1000
    python -m benchmarks ratio --clients 1,64,256,1000
    """
    if context.invoked_subcommand is not None:
        for option in context.command.params:
            source = context.get_parameter_source(option.name or "")
            if source is not None and source.name == "COMMANDLINE":
                command = context.invoked_subcommand
                raise typer.BadParameter(f"give it after the command: {command}", param_hint=option.opts[0])
        return
    from benchmarks.suite import run_suite, seconds_of, steps

    require_folder(out)
    begun = time.monotonic()
    machine, service = describe_machine(model), describe_service()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("starting", total=steps(repeats))

        def tell(what: str) -> None:
            progress.update(task, advance=1, description=what)
            if not errors.is_terminal:
                errors.print(what)

        suite = run_suite(model, repeats, seconds, patience, tell)
    settings = {
        "service": service,
        "repeats": repeats,
        "seconds_of_each": seconds_of(seconds),
        "patience_seconds": patience,
        "took": f"{time.monotonic() - begun:.0f} s",
    }
    parts = suite.parts()
    for part in parts:
        if isinstance(part, Grid):
            print_grid(part)
    with writing(out):
        write_results(out, {"machine": machine, "settings": settings, **suite.to_json()})
        report = write_report(out, machine, settings, parts)
    console.print(f"written: {report}")


@app.command()
def limit(
    size: SizesOption = ALL_SIZES,
    batch: Annotated[str, typer.Option(help="Images per run of the model; comma-separated.")] = "1,8",
    workers: Annotated[
        str, typer.Option(help="threads, processes, or both by a comma.")
    ] = "threads,processes",
    count: Annotated[int, typer.Option(min=0, help="How many; 0 takes one per CPU.")] = 0,
    detect: DetectOption = "never",
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """The bare loop of decoding and inference on all cores: what the machine can do."""
    sizes = parse_sizes(size)
    batches = parse_numbers(batch, "--batch")
    kinds: list[Workers] = []
    for kind in workers.split(","):
        if kind not in ("threads", "processes"):
            raise typer.BadParameter("threads or processes", param_hint="--workers")
        kinds.append(kind)  # type: ignore[arg-type]
    results = []
    with limit_bench(model, count or available_cpus()) as bench, errors.status("limit"):
        for _ in range(repeats):
            for each in sizes:
                for number in batches:
                    results += [bench.measure(kind, each, number, detect, seconds) for kind in kinds]
    show(as_json, {"results": results}, limit_grid(results))


@app.command()
def load(
    size: SizesOption = "64x64",
    clients: ClientsOption = "64",
    depth: Annotated[int, typer.Option(min=1, help="Requests in flight per connection, closed loop.")] = 1,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Open loop: requests per second, over all.", callback=finite)
    ] = None,
    arrivals: Annotated[
        Arrivals,
        typer.Option(help="Of an open loop: poisson, paced (evenly) or burst (all clients at once)."),
    ] = "poisson",
    binary: BinaryOption = False,
    detect: DetectOption = "never",
    deadline: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Deadline of each request, in milliseconds; later answers are no goodput.",
            callback=finite,
        ),
    ] = None,
    slo: Annotated[
        str | None,
        typer.Option(
            help="For example p99=10ms,rps=3000,errors=0. Exit code 4 if missed, 1 after a wrong answer."
        ),
    ] = None,
    url: UrlOption = None,
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 1,
    seconds: SecondsOption = 5.0,
    polling: PollingOption = False,
    as_json: JsonOption = False,
) -> None:
    """Clients over WebSocket: throughput, latency, errors, and what the server and the generator spend."""
    try:
        objectives = [] if slo is None else parse_slo(slo)  # an empty text is a variable that is not set
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--slo") from None
    if arrivals != "poisson" and rate is None:
        raise typer.BadParameter("is of an open loop: give --rate, too", param_hint="--arrivals")
    counts = parse_numbers(clients, "--clients")
    sizes = parse_sizes(size)
    allow_open_files(max(counts))
    series = []
    with _target(url, model) as target, errors.status("load"):
        for each in sizes:
            workload = make_workload(each, "binary" if binary else "json", detect, deadline)
            for count in counts:
                plan = LoadPlan(count, depth, rate, arrivals, deadline, seconds, polling=polling)
                series.append([run_one(target, workload, plan) for _ in range(repeats)])
    outcomes = [check_slo(objectives, results) for results in series]
    grids = [load_grid(series), *_slo_grids(outcomes, series)]
    every = [result for results in series for result in results]
    show(as_json, {"results": every, "slo": outcomes}, *grids)
    for results in series:
        bursts, first = [took for result in results for took in result.bursts_ms], results[0]
        if bursts and not as_json:
            whose = f"{first.size}, {first.clients} clients"
            console.print(f"last answer of a burst, {whose}: {spread(bursts):.0f} ms")
    for result in every:
        answered(result)
    if any(result.wrong for result in every):
        raise typer.Exit(EXIT_WRONG)
    if not all(outcome.met for each in outcomes for outcome in each):
        raise typer.Exit(EXIT_MISSED)
    if not objectives and any(result.failed for result in every):
        raise typer.Exit(EXIT_WRONG)


@app.command()
def ratio(
    size: SizesOption = "64x64",
    clients: ClientsOption = "1,64,256,1000",
    binary: BinaryOption = False,
    detect: DetectOption = "never",
    url: UrlOption = None,
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    patience: PatienceOption = 0.0,
    seconds: SecondsOption = 3.0,
    polling: PollingOption = False,
    as_json: JsonOption = False,
) -> None:
    """The service against the bare loop, in turns."""
    counts = parse_numbers(clients, "--clients")
    sizes = parse_sizes(size)
    allow_open_files(max(counts))
    series = []
    with limit_bench(model, available_cpus()) as bench, _target(url, model) as target, errors.status("ratio"):
        for each in sizes:
            workload = make_workload(each, "binary" if binary else "json", detect)
            for count in counts:
                plan = LoadPlan(clients=count, seconds=seconds, polling=polling)
                series.append(list(against_limit(bench, target, workload, plan, repeats, patience)))
    loads = load_grid([[pair.load for pair in pairs] for pairs in series])
    show(as_json, {"results": series}, ratio_grid(series), loads)
    if any(pair.load.failed for pairs in series for pair in pairs):
        raise typer.Exit(EXIT_WRONG)


@app.command()
def sweep(
    size: SizeOption = "64x64",
    url: UrlOption = None,
    model: ModelOption = DEFAULT_MODEL,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """Latency against throughput, over clients and over rates; writes sweep-SIZE.svg and .json."""
    from benchmarks.plots import plot_sweep

    require_folder(OUT)
    workload = make_workload(size)
    with _target(url, model) as target, errors.status("sweep"):
        closed = list(sweep_clients(target, workload, CLIENTS, seconds))
        # Without an answer there are no rates to go over.
        saturation = answered(max(closed, key=lambda point: point.throughput)).throughput
        rates = [share * saturation for share in SHARES]
        found = Sweep(size, saturation, closed, list(sweep_rates(target, workload, rates, seconds)))
    # First: a disk that is full does not cost the figures.
    show(as_json, {"sweep": found}, sweep_grid(found))
    path = OUT / f"sweep-{size}.svg"
    with writing(OUT):
        path.write_text(plot_sweep(found), encoding="utf-8")
        path.with_suffix(".json").write_bytes(to_json(found, orjson.OPT_INDENT_2))
    if not as_json:
        console.print(f"written: {path}")


@app.command()
def profile(
    size: SizeOption = "64x64",
    clients: Annotated[int, typer.Option(min=1, help="Connections.")] = 64,
    binary: BinaryOption = False,
    model: ModelOption = DEFAULT_MODEL,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """The server's CPU time per request, by stage."""
    with errors.status("profile"):
        found = measure_profile(model, make_workload(size, "binary" if binary else "json"), clients, seconds)
    show(as_json, {"profile": found}, profile_grid(found))


def _slo_grids(outcomes: list[list[Outcome]], series: list[list[LoadResult]]) -> list[Grid]:
    pairs = zip(outcomes, (results[0] for results in series), strict=True)
    return [slo_grid(each, f"{first.size}, {first.clients} clients") for each, first in pairs if each]


def _target(url: str | None, model: Path) -> AbstractContextManager[Target]:
    return nullcontext(Target(url)) if url is not None else started_service(model)


add_scenarios(app)


def main() -> None:
    """Run the command line; a server that cannot be reached or started is one line and exit code 3."""
    # As Ctrl-C does: what was started is stopped, and folders are removed. A terminal that is closed hangs up; the
    # service takes that for a wish to reload. Under nohup it is ignored, and stays so.
    ended: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        if ended:
            return  # it is on its way: what is raised once more would be raised amid what stops the service
        ended.append(number)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            sys.exit(128 + number)
        # An event loop runs. It would go on after what is raised in a callback; on Ctrl-C it cancels what it runs.
        signal.raise_signal(signal.SIGINT)

    # What a script starts in its background ignores Ctrl-C, and then the loop does not listen to it either.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        with checked_output():
            app()
    except OutputFailed as exc:
        if exc.reason:
            print(f"benchmarks: the output cannot be written: {exc.reason}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except (ConnectionLost, ConnectionFailed, StartupError, RuntimeError) as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        sys.exit(EXIT_NO_SERVER)
    except (Unanswered, VisionAIError) as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        sys.exit(EXIT_WRONG)
    except SystemExit:
        if ended:
            sys.exit(128 + ended[0])
        raise
