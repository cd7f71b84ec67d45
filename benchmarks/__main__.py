"""Command line of the benchmarks: `python -m benchmarks --help`."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks.arrivals import Arrivals
from benchmarks.capacity import MACHINES, needs
from benchmarks.compare import against_limit
from benchmarks.costs import measure_costs
from benchmarks.gpu import batch_curve, service_on
from benchmarks.history import Database, measure_history
from benchmarks.hosts import enter
from benchmarks.idle import measure_idle
from benchmarks.limit import Workers, limit_bench
from benchmarks.load import LoadPlan, LoadResult, allow_open_files
from benchmarks.load import load as run_one
from benchmarks.machine import describe_machine
from benchmarks.misbehave import OFFENCES, measure_misbehaviour
from benchmarks.persistence import compare_storing
from benchmarks.profile import profile as measure_profile
from benchmarks.replicas import failover, scaling
from benchmarks.report import write_report, write_results
from benchmarks.slo import Outcome, check_slo, parse_slo
from benchmarks.sweep import CLIENTS, SHARES, Sweep, sweep_clients, sweep_rates
from benchmarks.tables import (
    Grid,
    capacity_grid,
    costs_grid,
    curve_grid,
    failover_grid,
    history_grids,
    idle_grid,
    limit_grid,
    load_grid,
    misbehaviour_grid,
    profile_grid,
    ratio_grid,
    scaling_grid,
    served_grid,
    slo_grid,
    storing_grid,
    sweep_grid,
)
from benchmarks.target import Target, started_service
from benchmarks.wire import ConnectionLost
from benchmarks.workload import SIZES, Detect, make_workload
from service.cpus import available_cpus
from service.errors import StartupError
from service.settings import DEFAULT_MODEL, Provider

OUT = Path(__file__).parent / "out"

# Exit codes: 1 errors or wrong answers, 2 usage, 3 a server cannot be reached or started, 4 an objective is missed.
_EXIT_WRONG, _EXIT_NO_SERVER, _EXIT_MISSED = 1, 3, 4

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
# Wide enough for the load table also where output goes to a file.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 230)
errors = Console(stderr=True, highlight=False)
_ALL_SIZES = ",".join(SIZES)

SizesOption = Annotated[str, typer.Option("--size", help=f"Image sizes, of {', '.join(SIZES)}; by commas.")]
ClientsOption = Annotated[str, typer.Option("--clients", help="Connections; several by commas.")]
ModelOption = Annotated[Path, typer.Option(help="The ONNX file.")]
DetectOption = Annotated[
    Detect, typer.Option(help="never: each image is a face; auto: faces are looked for.")
]
RepeatsOption = Annotated[int, typer.Option(min=1, help="Repeats; tables show the median and the range.")]
SecondsOption = Annotated[float, typer.Option(min=0.2, help="Measured seconds of each, after a warm-up.")]
PatienceOption = Annotated[
    float,
    typer.Option(
        min=0, help="Seconds to wait, before each measurement, for a machine that does nothing else."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
UrlOption = Annotated[str | None, typer.Option(help="A running server; otherwise one is started.")]


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
        return
    from benchmarks.suite import run_suite, steps

    begun = time.monotonic()
    machine = describe_machine(model)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("starting", total=steps(repeats))

        def tell(what: str) -> None:
            progress.update(task, advance=1, description=what)
            if not errors.is_terminal:
                errors.print(what)

        suite = run_suite(model, repeats, seconds, patience, tell)
    settings = {"repeats": repeats, "seconds_each": seconds, "took": f"{time.monotonic() - begun:.0f} s"}
    parts = suite.parts()
    for part in parts:
        if isinstance(part, Grid):
            console.print(part.as_rich())
    write_results(out, {"machine": machine, "settings": settings, **suite.to_json()})
    console.print(f"written: {write_report(out, machine, settings, parts)}")


@app.command()
def limit(
    size: SizesOption = _ALL_SIZES,
    batch: Annotated[str, typer.Option(help="Images per run of the model; several by commas.")] = "1,8",
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
    sizes = _sizes(size)
    batches = _numbers(batch, "--batch")
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
    _show(as_json, {"results": results}, limit_grid(results))


@app.command()
def load(
    size: SizesOption = "64x64",
    clients: ClientsOption = "64",
    depth: Annotated[int, typer.Option(min=1, help="Requests in flight per connection, closed loop.")] = 1,
    rate: Annotated[
        float | None, typer.Option(min=0.1, help="Open loop: requests per second, over all.")
    ] = None,
    arrivals: Annotated[
        Arrivals,
        typer.Option(help="Of an open loop: poisson, paced (evenly) or burst (all clients at once)."),
    ] = "poisson",
    binary: Annotated[
        bool, typer.Option("--binary", help="Binary frames instead of base64 in JSON.")
    ] = False,
    detect: DetectOption = "never",
    deadline: Annotated[
        float | None, typer.Option(min=0.1, help="Milliseconds: sent along; later answers are no goodput.")
    ] = None,
    slo: Annotated[
        str | None, typer.Option(help="For example p99=10ms,rps=3000,errors=0; missed is exit 4.")
    ] = None,
    url: UrlOption = None,
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 1,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Clients over WebSocket: throughput, latency, errors, and what the server and the generator spend."""
    try:
        objectives = parse_slo(slo) if slo else []
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--slo") from None
    counts = _numbers(clients, "--clients")
    sizes = _sizes(size)
    allow_open_files(max(counts))
    series = []
    with _target(url, model) as target, errors.status("load"):
        for each in sizes:
            workload = make_workload(each, "binary" if binary else "json", detect, deadline)
            for count in counts:
                plan = LoadPlan(count, depth, rate, arrivals, deadline, seconds)
                series.append([run_one(target, workload, plan) for _ in range(repeats)])
    outcomes = [check_slo(objectives, results) for results in series]
    grids = [load_grid(series), *_slo_grids(outcomes, series)]
    _show(as_json, {"results": [r for results in series for r in results], "slo": outcomes}, *grids)
    if any(bursts := [took for results in series for r in results for took in r.bursts_ms]) and not as_json:
        console.print(f"last answer of a burst: {sorted(bursts)[len(bursts) // 2]:.0f} ms in the median")
    if not all(outcome.met for each in outcomes for outcome in each):
        raise typer.Exit(_EXIT_MISSED)
    if not objectives and any(result.failed for results in series for result in results):
        raise typer.Exit(_EXIT_WRONG)


@app.command()
def ratio(
    size: SizesOption = "64x64",
    clients: ClientsOption = "1,64,256,1000",
    binary: Annotated[
        bool, typer.Option("--binary", help="Binary frames instead of base64 in JSON.")
    ] = False,
    detect: DetectOption = "never",
    url: UrlOption = None,
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    patience: PatienceOption = 0.0,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """The service against the bare loop, in turns."""
    counts = _numbers(clients, "--clients")
    sizes = _sizes(size)
    allow_open_files(max(counts))
    series = []
    with limit_bench(model, available_cpus()) as bench, _target(url, model) as target, errors.status("ratio"):
        for each in sizes:
            workload = make_workload(each, "binary" if binary else "json", detect)
            for count in counts:
                plan = LoadPlan(clients=count, seconds=seconds)
                series.append(list(against_limit(bench, target, workload, plan, repeats, patience)))
    loads = load_grid([[pair.load for pair in pairs] for pairs in series])
    _show(as_json, {"results": series}, ratio_grid(series), loads)


@app.command()
def sweep(
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "64x64",
    url: UrlOption = None,
    model: ModelOption = DEFAULT_MODEL,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """Latency against throughput, over clients and over rates; writes sweep-SIZE.svg and .json."""
    from benchmarks.plots import plot_sweep

    (size,) = _sizes(size)
    workload = make_workload(size)
    with _target(url, model) as target, errors.status("sweep"):
        closed = list(sweep_clients(target, workload, CLIENTS, seconds))
        saturation = max(point.throughput for point in closed)
        rates = [share * saturation for share in SHARES]
        found = Sweep(size, saturation, closed, list(sweep_rates(target, workload, rates, seconds)))
    OUT.mkdir(exist_ok=True)
    path = OUT / f"sweep-{size}.svg"
    path.write_text(plot_sweep(found))
    path.with_suffix(".json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    _show(as_json, {"sweep": found}, sweep_grid(found))
    if not as_json:
        console.print(f"written: {path}")


@app.command()
def profile(
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "64x64",
    clients: Annotated[int, typer.Option(min=1, help="Connections.")] = 64,
    binary: Annotated[
        bool, typer.Option("--binary", help="Binary frames instead of base64 in JSON.")
    ] = False,
    model: ModelOption = DEFAULT_MODEL,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """The server's CPU time per request, by stage."""
    (size,) = _sizes(size)
    with errors.status("profile"):
        found = measure_profile(model, make_workload(size, "binary" if binary else "json"), clients, seconds)
    _show(as_json, {"profile": found}, profile_grid(found))


@app.command()
def storing(
    clients: Annotated[int, typer.Option(min=1, help="Connections.")] = 64,
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 5,
    patience: PatienceOption = 0.0,
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """What storing costs: predictions dropped, in SQLite, in PostgreSQL, and in the journal alone."""
    with errors.status("storing"):
        plan = LoadPlan(clients=clients, seconds=seconds)
        results = compare_storing(model, make_workload("64x64"), plan, repeats, patience)
    _show(as_json, {"results": results}, storing_grid(results))


@app.command()
def history(
    rows: Annotated[int, typer.Option(min=1, help="Stored predictions, ten a second.")] = 10_000_000,
    database: Annotated[Database, typer.Option(help="Where they are.")] = "sqlite",
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """`history` and `stats` over a large database, and what predictions notice of them."""
    columns = (TextColumn("filling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("", total=rows)

        def tell(filled: int) -> None:
            progress.update(task, completed=filled)

        found = measure_history(model, database, rows, seconds, repeats, tell)
    _show(as_json, {"history": found}, *history_grids(found))


@app.command()
def capacity(
    size: Annotated[str, typer.Option(help=f"Image size, of {', '.join(SIZES)}.")] = "64x64",
    rate: Annotated[float, typer.Option(min=0.001, help="Images per second of each camera.")] = 1.0,
    cameras: Annotated[str, typer.Option(help="Several by commas.")] = "10000,100000,1000000",
    clients: Annotated[int, typer.Option(min=1, help="Connections of the measurement.")] = 64,
    model: ModelOption = DEFAULT_MODEL,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """What so many cameras need, from what one request costs here, and what gives way first."""
    try:
        with errors.status("capacity"):
            costs = measure_costs(model, make_workload(size), clients, seconds)
    except (RuntimeError, ImportError) as exc:
        errors.print(str(exc))
        raise typer.Exit(_EXIT_NO_SERVER) from None
    found = [needs(number, rate, costs, MACHINES) for number in _numbers(cameras, "--cameras")]
    _show(as_json, {"costs": costs, "needs": found}, costs_grid(costs), capacity_grid(found, rate))


@app.command()
def gpu(
    model: ModelOption = DEFAULT_MODEL,
    clients: Annotated[int, typer.Option(min=1, help="Connections to the service.")] = 256,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """Batches and the service on a GPU, against the CPU; says so where there is no GPU."""
    try:
        with errors.status("gpu"):
            curve = batch_curve(model, "cuda") + batch_curve(model, "cpu")
    except StartupError as exc:
        console.print(f"no GPU to measure: {exc}")
        return
    providers: tuple[Provider, ...] = ("cpu", "cuda")
    plan = LoadPlan(clients=clients, seconds=seconds)
    served = {each: service_on(model, each, make_workload("64x64"), plan) for each in providers}
    _show(as_json, {"curve": curve, "served": served}, curve_grid(curve), served_grid(served))


@app.command()
def replicas(
    count: Annotated[int, typer.Option("--replicas", min=2, help="Replicas behind HAProxy.")] = 3,
    clients: Annotated[int, typer.Option(min=1, help="Connections.")] = 32,
    rate: Annotated[float, typer.Option(min=1, help="Requests per second, of all clients.")] = 200.0,
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds from one event to the next.")] = 5.0,
    scale: Annotated[bool, typer.Option(help="Measure throughput by the number of replicas, too.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Replicas in network namespaces behind HAProxy: one killed, all rolled, one cut off; then how they add up."""
    try:
        enter()
        with errors.status("replicas") as status:
            work = make_workload("64x64", detect="never")
            found = failover(
                work, replicas=count, clients=clients, rate=rate, seconds=seconds, tell=status.update
            )
            plan = LoadPlan(clients=clients, seconds=seconds)
            scaled = scaling(work, plan, range(1, count + 1)) if scale else []
    except (RuntimeError, ImportError) as exc:
        errors.print(str(exc))
        raise typer.Exit(_EXIT_NO_SERVER) from None
    results = {"failover": found, "scaling": [{"replicas": n, "load": each} for n, each in scaled]}
    grids = [failover_grid(found)] + ([scaling_grid(scaled)] if scaled else [])
    _show(as_json, results, *grids)
    if found.missing or found.twice or any(phase.failed for phase in found.phases):
        raise typer.Exit(_EXIT_WRONG)


@app.command()
def idle(
    connections: Annotated[int, typer.Option(min=1, help="Idle connections.")] = 1000,
    model: ModelOption = DEFAULT_MODEL,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Start-up time, memory, memory per idle connection, CPU time while idle."""
    with errors.status("idle"):
        found = measure_idle(model, connections, seconds)
    _show(as_json, {"idle": found}, idle_grid(found))


@app.command()
def misbehave(
    offences: Annotated[str, typer.Option(help=f"Of {', '.join(OFFENCES)}; by commas.")] = ",".join(OFFENCES),
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """The others' p99 while one client misbehaves, against the quiet right before."""
    chosen = offences.split(",")
    if not set(chosen) <= set(OFFENCES):
        raise typer.BadParameter(f"of {', '.join(OFFENCES)}", param_hint="--offences")
    with errors.status("misbehave"):
        results = measure_misbehaviour(model, chosen, repeats, seconds)
    _show(as_json, {"results": results}, misbehaviour_grid(results))


@app.command()
def peers(
    names: Annotated[
        str, typer.Option("--peers", help="Which, by commas.")
    ] = "mosec,fastapi,litserve,bentoml,keras",
    size: Annotated[str, typer.Option(help=f"One of {', '.join(SIZES)}.")] = "64x64",
    clients: ClientsOption = "1,64",
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    patience: PatienceOption = 0.0,
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """The same job in other servers; installs each on demand into an environment of its own."""
    from benchmarks.peers.compare import PEERS, compare_peers, peers_grid

    chosen = names.split(",")
    for name in chosen:
        if name not in PEERS:
            raise typer.BadParameter(f"of {', '.join(PEERS)}", param_hint="--peers")
    (size,) = _sizes(size)
    plans = [LoadPlan(clients=count, seconds=seconds) for count in _numbers(clients, "--clients")]
    with errors.status("peers") as status:
        results, missing = compare_peers(chosen, model, size, plans, repeats, patience, status.update)
    _show(as_json, {"results": results, "missing": missing}, peers_grid(results))
    for name, reason in missing.items():
        errors.print(f"{name} is missing: {reason}")


def _slo_grids(outcomes: list[list[Outcome]], series: list[list[LoadResult]]) -> list[Grid]:
    pairs = zip(outcomes, (results[0] for results in series), strict=True)
    return [slo_grid(each, f"{first.size}, {first.clients} clients") for each, first in pairs if each]


def _target(url: str | None, model: Path) -> Any:
    from contextlib import nullcontext

    return nullcontext(Target(url)) if url is not None else started_service(model)


def _sizes(text: str) -> list[str]:
    sizes = text.split(",")
    if not set(sizes) <= set(SIZES):
        raise typer.BadParameter(f"of {', '.join(SIZES)}", param_hint="--size")
    return sizes


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise typer.BadParameter("whole numbers from 1, by commas", param_hint=option)
    return numbers


def _show(as_json: bool, results: dict[str, Any], *grids: Grid) -> None:
    if as_json:
        print(orjson.dumps(results).decode())
        return
    for grid in grids:
        console.print(grid.as_rich())


def main() -> None:
    """Run the command line; a server that cannot be reached or started is one line and exit code 3."""
    # As Ctrl-C does: what was started is stopped, and folders are removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        app()
    except (ConnectionLost, StartupError, RuntimeError) as exc:
        print(f"benchmarks: {exc}", file=sys.stderr)
        sys.exit(_EXIT_NO_SERVER)


if __name__ == "__main__":
    main()
