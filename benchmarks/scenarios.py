"""The commands that measure one thing about the service each: storing, memory, replicas, other servers and so on."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.capacity import MACHINES, needs
from benchmarks.costs import measure_costs
from benchmarks.faces import measure_faces
from benchmarks.gpu import batch_curve, service_on
from benchmarks.history import Database, measure_history
from benchmarks.hosts import enter
from benchmarks.idle import measure_idle
from benchmarks.load import LoadPlan
from benchmarks.misbehave import OFFENCES, measure_misbehaviour
from benchmarks.options import (
    EXIT_WRONG,
    ClientsOption,
    JsonOption,
    ModelOption,
    PatienceOption,
    RepeatsOption,
    SecondsOption,
    SizeOption,
    console,
    errors,
    parse_numbers,
    show,
)
from benchmarks.peers.compare import PEERS, compare_peers, peers_grid
from benchmarks.persistence import compare_storing
from benchmarks.replicas import failover, scaling
from benchmarks.tables import (
    capacity_grid,
    costs_grid,
    curve_grid,
    failover_grid,
    history_grids,
    idle_grid,
    misbehaviour_grid,
    scaling_grid,
    served_grid,
    storing_grid,
)
from benchmarks.workload import make_workload
from client.cli.options import finite
from service.errors import StartupError
from service.modelfile import resolve_model
from service.settings import DEFAULT_MODEL, Provider


def add_scenarios(app: typer.Typer) -> None:
    """Add the commands of this module to the command line."""
    for command in (storing, history, capacity, gpu, replicas, idle, misbehave, peers):
        app.command()(command)
    app.command("faces")(measure_faces)


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
    show(as_json, {"results": results}, storing_grid(results))


def history(
    rows: Annotated[int, typer.Option(min=1, help="Stored predictions, ten a second.")] = 10_000_000,
    database: Annotated[Database, typer.Option(help="Where they are.")] = "sqlite",
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """`history` and `stats` over a large database, and how much they slow predictions down."""
    columns = (TextColumn("filling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task("", total=rows)

        def tell(filled: int) -> None:
            progress.update(task, completed=filled)

        found = measure_history(model, database, rows, seconds, repeats, tell)
    show(as_json, {"history": found}, *history_grids(found))


def capacity(
    size: SizeOption = "64x64",
    rate: Annotated[
        float, typer.Option(min=0.001, help="Images per second of each camera.", callback=finite)
    ] = 1.0,
    cameras: Annotated[str, typer.Option(help="Comma-separated.")] = "10000,100000,1000000",
    clients: Annotated[int, typer.Option(min=1, help="Connections of the measurement.")] = 64,
    model: ModelOption = DEFAULT_MODEL,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """What so many cameras need, from the cost of one request here, and what reaches its limit first."""
    workload, numbers = make_workload(size), parse_numbers(cameras, "--cameras")
    with errors.status("capacity"):
        costs = measure_costs(model, workload, clients, seconds)
    found = [needs(number, rate, costs, MACHINES) for number in numbers]
    show(as_json, {"costs": costs, "needs": found}, costs_grid(costs), capacity_grid(found, rate))


def gpu(
    model: ModelOption = DEFAULT_MODEL,
    clients: Annotated[int, typer.Option(min=1, help="Connections to the service.")] = 256,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """Batches and the service on a GPU, against the CPU; says so where there is no GPU."""
    model = resolve_model(model, "--model")  # first: without it there is nothing to say about a GPU
    try:
        with errors.status("gpu"):
            curve = batch_curve(model, "cuda") + batch_curve(model, "cpu")
    except StartupError as exc:
        if as_json:
            show(as_json, {"curve": [], "served": {}, "missing": str(exc)})
        else:
            console.print(f"no GPU to measure: {exc}")
        return
    providers: tuple[Provider, ...] = ("cpu", "cuda")
    plan = LoadPlan(clients=clients, seconds=seconds)
    served = {each: service_on(model, each, make_workload("64x64"), plan) for each in providers}
    show(as_json, {"curve": curve, "served": served, "missing": None}, curve_grid(curve), served_grid(served))


def replicas(
    count: Annotated[int, typer.Option("--replicas", min=2, help="Replicas behind HAProxy.")] = 3,
    clients: Annotated[int, typer.Option(min=1, help="Connections.")] = 32,
    rate: Annotated[
        float, typer.Option(min=1, help="Requests per second, of all clients.", callback=finite)
    ] = 200.0,
    seconds: Annotated[
        float, typer.Option(min=0.5, help="Seconds from one event to the next.", callback=finite)
    ] = 5.0,
    scale: Annotated[bool, typer.Option(help="Measure throughput by the number of replicas, too.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Replicas in network namespaces behind HAProxy: one killed, all rolled, one cut off; then how they add up."""
    enter()
    with errors.status("replicas") as status:
        work = make_workload("64x64", detect="never")
        found = failover(
            work, replicas=count, clients=clients, rate=rate, seconds=seconds, tell=status.update
        )
        plan = LoadPlan(clients=clients, seconds=seconds)
        scaled = scaling(work, plan, range(1, count + 1)) if scale else []
    results = {"failover": found, "scaling": [{"replicas": n, "load": each} for n, each in scaled]}
    grids = [failover_grid(found)] + ([scaling_grid(scaled)] if scaled else [])
    show(as_json, results, *grids)
    if found.missing or found.twice or any(phase.failed for phase in found.phases):
        raise typer.Exit(EXIT_WRONG)


def idle(
    connections: Annotated[int, typer.Option(min=1, help="Idle connections.")] = 1000,
    model: ModelOption = DEFAULT_MODEL,
    seconds: SecondsOption = 5.0,
    as_json: JsonOption = False,
) -> None:
    """Start-up time, memory, memory per idle connection, CPU time while idle."""
    with errors.status("idle"):
        found = measure_idle(model, connections, seconds)
    show(as_json, {"idle": found}, idle_grid(found))


def misbehave(
    offences: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(OFFENCES)}.")] = ",".join(
        OFFENCES
    ),
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    seconds: SecondsOption = 3.0,
    as_json: JsonOption = False,
) -> None:
    """The others' p99 while one client misbehaves, compared with right before."""
    chosen = offences.split(",")
    if not set(chosen) <= set(OFFENCES):
        raise typer.BadParameter(f"of {', '.join(OFFENCES)}", param_hint="--offences")
    with errors.status("misbehave"):
        results = measure_misbehaviour(model, chosen, repeats, seconds)
    show(as_json, {"results": results}, misbehaviour_grid(results))


def peers(
    names: Annotated[
        str, typer.Option("--peers", help="Comma-separated.")
    ] = "mosec,fastapi,litserve,bentoml,keras",
    size: SizeOption = "64x64",
    clients: ClientsOption = "1,64",
    model: ModelOption = DEFAULT_MODEL,
    repeats: RepeatsOption = 3,
    patience: PatienceOption = 0.0,
    seconds: SecondsOption = 2.0,
    as_json: JsonOption = False,
) -> None:
    """The same job in other servers; installs each on demand into an environment of its own."""
    chosen = list(dict.fromkeys(names.split(",")))  # twice the same would have two rows where one is expected
    for name in chosen:
        if name not in PEERS:
            raise typer.BadParameter(f"of {', '.join(PEERS)}", param_hint="--peers")
    plans = [LoadPlan(clients=count, seconds=seconds) for count in parse_numbers(clients, "--clients")]
    with errors.status("peers") as status:
        results, missing = compare_peers(chosen, model, size, plans, repeats, patience, status.update)
    show(as_json, {"results": results, "missing": missing}, peers_grid(results))
    for name, reason in missing.items():
        errors.print(f"{name} is missing: {reason}")
