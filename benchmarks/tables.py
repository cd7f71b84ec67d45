"""Results as tables: for the terminal and for the report alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

from rich.table import Table

from benchmarks.capacity import Costs, Needs
from benchmarks.compare import Paired
from benchmarks.gpu import BatchPoint
from benchmarks.history import HistoryResult
from benchmarks.idle import IdleResult
from benchmarks.limit import LimitResult
from benchmarks.load import LoadResult
from benchmarks.misbehave import Disturbance
from benchmarks.persistence import Storing, StoringResult
from benchmarks.profile import WORK, Profile
from benchmarks.replicas import Failover
from benchmarks.slo import Outcome
from benchmarks.spread import spread
from benchmarks.sweep import Sweep
from benchmarks.workload import SIZES
from service.settings import Provider


@dataclass(frozen=True, slots=True)
class Grid:
    """A titled table of text. Cells with a range are the median and, in brackets, the lowest and the highest repeat."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""

    def as_rich(self) -> Table:
        """For the terminal. Where it is too narrow, cells go on in the next line: none is cut off."""
        table = Table(title=self.title, caption=self.note or None)
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        return table

    def turned(self) -> Grid:
        """The same with a column for each row."""
        columns, *rows = zip(self.columns, *self.rows, strict=True)
        return Grid(self.title, columns, [list(row) for row in rows], self.note)


_Result = TypeVar("_Result", LoadResult, Paired)


def _cell(results: Sequence[_Result], value: Callable[[_Result], float | None], form: str) -> str:
    """The median and the range of what was measured of these repeats; a dash where it never was."""
    values = [found for result in results if (found := value(result)) is not None]
    return f"{spread(values):{form}}" if values else "-"


def _name(size: str, detect: str) -> str:
    return size + ("" if detect == "never" else " with detection")


def limit_grid(results: Sequence[LimitResult]) -> Grid:
    """Repeats of one setting are one row; they follow each other."""
    grid = Grid("limit: decode + run, no network", ["size", "workers", "batch", "images/s", "CPU µs/image"])

    sizes = list(SIZES)

    def setting(r: LimitResult) -> tuple[int, str, int, int, str]:
        return (sizes.index(r.size), r.detect, r.batch, r.count, r.workers)

    for (index, detect, batch, count, workers), group in groupby(sorted(results, key=setting), setting):
        repeats = list(group)
        grid.rows.append(
            [
                _name(sizes[index], detect),
                f"{count} {workers}",
                str(batch),
                f"{spread([r.throughput for r in repeats]):,.0f}",
                f"{spread([r.cpu_per_image_us for r in repeats]):.0f}",
            ]
        )
    return grid


_LOAD_COLUMNS = [
    "size",
    "clients",
    "rate",
    "req/s",
    "p50 ms",
    "p90",
    "p99",
    "p99.9",
    "errors",
    "slowest client",
    "CPU µs/req",
    "PSS MB",
    "RSS MB",
    "generator",
    "others",
]


def load_grid(series: Sequence[Sequence[LoadResult]], title: str = "") -> Grid:
    """One row per series of repeats."""
    grid = Grid(title or "load: clients over WebSocket, predictions stored", _LOAD_COLUMNS)
    for results in series:
        first = results[0]
        codes: dict[str, int] = {}
        for result in results:
            for code, count in (*result.errors.items(), ("wrong", result.wrong)):
                codes[code] = codes.get(code, 0) + count
        grid.rows.append(
            [
                f"{_name(first.size, first.detect)} {first.framing}",
                str(first.clients),
                "closed" if first.rate is None else f"{first.rate:,.0f}",
                _cell(results, lambda r: r.throughput, ",.0f"),
                _cell(results, lambda r: r.latency.p50, ".2f"),
                f"{spread([r.latency.p90 for r in results]).median:.2f}",
                _cell(results, lambda r: r.latency.p99, ".2f"),
                f"{spread([r.latency.p999 for r in results]).median:.2f}",
                " ".join(f"{code}:{count}" for code, count in sorted(codes.items()) if count) or "0",
                f"{spread([r.slowest_client_share for r in results]).median:.2f}",
                _cell(results, lambda r: r.server_cpu_per_request_us, ".0f"),
                _cell(results, lambda r: None if r.server is None else r.server.pss_mb, ".0f"),
                _cell(results, lambda r: None if r.server is None else r.server.rss_mb, ".0f"),
                f"{spread([r.generator_cores for r in results]).median:.2f} cores",
                _cell(results, lambda r: r.others_cores, ".2f"),
            ]
        )
    return grid


def ratio_grid(series: Sequence[Sequence[Paired]]) -> Grid:
    """The service against the bare loop."""
    grid = Grid(
        "service / limit, taken in turns",
        [
            "load",
            "limit images/s",
            "service req/s",
            "share of what the generator leaves",
            "plain share",
            "CPU ratio",
            "p50 beyond one call, ms",
            "others",
        ],
        note="The limit is scaled by the cores that generator and others leave; the plain share holds both against us.",
    )
    for pairs in series:
        first = pairs[0].load
        grid.rows.append(
            [
                f"{_name(first.size, first.detect)} {first.framing}, {first.clients} clients",
                f"{spread([pair.limit.throughput for pair in pairs]):,.0f}",
                f"{spread([pair.load.throughput for pair in pairs]):,.0f}",
                _cell(pairs, lambda pair: pair.share, ".2f"),
                f"{spread([pair.plain_share for pair in pairs]):.2f}",
                _cell(pairs, lambda pair: pair.cpu_ratio, ".2f"),
                _cell(pairs, lambda pair: pair.beyond_call_ms, ".2f"),
                _cell([pair.load for pair in pairs], lambda r: r.others_cores, ".2f"),
            ]
        )
    return grid


def sweep_grid(sweep: Sweep) -> Grid:
    """The points of both curves."""
    knee = sweep.knee
    note = "no knee found" if knee is None else f"knee: {knee.rate:,.0f}/s, p99 {knee.latency.p99:.1f} ms"
    grid = Grid(
        f"sweep {sweep.size}: saturation {sweep.saturation:,.0f}/s",
        ["load", "req/s", "p50 ms", "p99", "p99.9", "errors"],
        note=note,
    )
    for point in (*sweep.closed, *sweep.open):
        name = f"{point.clients} clients" if point.rate is None else f"{point.rate:,.0f}/s"
        times = (point.latency.p50, point.latency.p99, point.latency.p999)
        grid.rows.append(
            [name, f"{point.throughput:,.0f}", *(f"{time:.2f}" for time in times), str(point.failed)]
        )
    return grid


def profile_grid(found: Profile) -> Grid:
    """The hot path by stage, the dearest first."""
    grid = Grid(
        f"hot path: CPU µs per request, {found.size} {found.framing}, {found.clients} clients, one worker",
        ["stage", "µs", "share", "what"],
        note=f"Timing took {found.overhead:.0f} µs per request, which is taken off; an untimed worker spends "
        f"{found.plain_total:.0f} µs. A server that only echoes frames of this size spends {found.echo:.0f} µs.",
    )
    for stage, cost in sorted(found.stages.items(), key=lambda item: -item[1]):
        grid.rows.append([stage, f"{cost:.1f}", f"{cost / found.total:.0%}", found.describe(stage)])
    outside = found.total - found.work
    grid.rows.append(["outside " + ", ".join(WORK), f"{outside:.1f}", f"{outside / found.total:.0%}", ""])
    grid.rows.append(["all", f"{found.total:.1f}", "", f"{found.kernel:.0f} of it in the kernel"])
    return grid


_WHERE: dict[Storing, str] = {
    "dropped": "dropped",
    "sqlite": "stored in sqlite",
    "postgresql": "stored in postgresql",
    "unreachable": "kept in the journal: postgresql is gone",
}


def storing_grid(results: Sequence[StoringResult]) -> Grid:
    """Throughput by where predictions go, as ratios within each round."""
    grid = Grid(
        "what storing costs", ["predictions are", "req/s", "of dropped", "p99 ms", "CPU µs/req", "errors"]
    )
    dropped = [result.load for result in results if result.storing == "dropped"]
    for storing in _WHERE:
        loads = [result.load for result in results if result.storing == storing]
        if not loads:
            continue
        shares = [each.throughput / base.throughput for each, base in zip(loads, dropped, strict=True)]
        grid.rows.append(
            [
                _WHERE[storing],
                _cell(loads, lambda r: r.throughput, ",.0f"),
                f"{spread(shares):.3f}",
                _cell(loads, lambda r: r.latency.p99, ".1f"),
                _cell(loads, lambda r: r.server_cpu_per_request_us, ".0f"),
                str(sum(each.failed for each in loads)),
            ]
        )
    return grid


def costs_grid(costs: Costs) -> Grid:
    """What one request costs."""
    rows = [
        ["the service, µs of CPU per request", f"{costs.service_us:.0f}"],
        ["HAProxy, µs of CPU per request", f"{costs.haproxy_us:.0f}"],
        ["PostgreSQL, µs of CPU per row", f"{costs.database_us:.0f}"],
        ["request, bytes on the wire", f"{costs.request_bytes:,.0f}"],
        ["reply, bytes", f"{costs.reply_bytes:,.0f}"],
        ["row with its indexes, bytes on disk", f"{costs.row_bytes:.0f}"],
        ["idle connection, KB in the service", f"{costs.connection_bytes / 1024:.1f}"],
    ]
    return Grid("what one request costs", ["", ""], rows)


def capacity_grid(found: Sequence[Needs], rate: float) -> Grid:
    """What cameras need, with what gives way first."""
    columns = ["cameras", "replicas", "cores", "connections GB", "database cores", "rows/s", "stored TB"]
    columns += ["balancer cores", "network Gbit/s", "gives way first", "of one"]
    grid = Grid(f"cameras that send {rate:g} images a second", columns)
    for each in found:
        grid.rows.append(
            [
                f"{each.cameras:,}",
                f"{each.replicas:,}",
                f"{each.service_cores:,.0f}",
                f"{each.connections_gb:.2f}",
                f"{each.database_cores:,.1f}",
                f"{each.requests_per_s:,.0f}",
                f"{each.stored_bytes / 1e12:,.1f}",
                f"{each.balancer_cores:,.1f}",
                f"{each.network_bits / 1e9:,.2f}",
                each.bottleneck,
                f"{each.loads[each.bottleneck]:.2f}",
            ]
        )
    return grid


def curve_grid(points: Sequence[BatchPoint]) -> Grid:
    """Time by size of batch."""
    grid = Grid("one run of the model", ["provider", "batch", "ms", "images/s"])
    for point in points:
        row = [point.provider, str(point.batch), f"{point.milliseconds:.2f}", f"{point.images_per_s:,.0f}"]
        grid.rows.append(row)
    return grid


def served_grid(served: Mapping[Provider, LoadResult]) -> Grid:
    """The service by provider."""
    grid = Grid("the service", ["provider", "req/s", "p50 ms", "p99 ms"])
    for provider, result in served.items():
        latency = result.latency
        grid.rows.append([provider, f"{result.throughput:,.0f}", f"{latency.p50:.1f}", f"{latency.p99:.1f}"])
    return grid


def failover_grid(found: Failover) -> Grid:
    """What clients noticed of each event."""
    grid = Grid(
        f"{found.replicas} replicas behind HAProxy, clients with the library",
        ["event", "requests", "failed", "late", "recovered after s", "then p50 ms", "p99 ms"],
        note=f"{found.acknowledged} predictions acknowledged: {found.missing} not in the database, {found.twice} twice",
    )
    for phase in found.phases:
        grid.rows.append(
            [
                phase.event,
                f"{phase.requests:,}",
                str(phase.failed),
                str(phase.late),
                f"{phase.recovery_s:.2f}",
                f"{phase.p50_ms:.1f}",
                f"{phase.p99_ms:.1f}",
            ]
        )
    return grid


def scaling_grid(results: Sequence[tuple[int, LoadResult]]) -> Grid:
    """Throughput by replicas."""
    grid = Grid("replicas of one worker each", ["replicas", "req/s", "of the first", "p50 ms", "p99 ms"])
    for count, result in results:
        share = result.throughput / results[0][1].throughput
        latency = result.latency
        grid.rows.append(
            [
                str(count),
                f"{result.throughput:,.0f}",
                f"{share:.2f}",
                f"{latency.p50:.1f}",
                f"{latency.p99:.1f}",
            ]
        )
    return grid


def idle_grid(found: IdleResult) -> Grid:
    """Start-up and idle use."""
    rows = [
        ["from start to ready, interpreter included", f"{found.ready_seconds:.2f} s"],
        ["calibration, at the first start on a machine", f"{found.calibration_seconds:.2f} s"],
        ["memory when ready (PSS, all processes)", f"{found.fresh_mb:.0f} MB"],
        ["memory after 64 clients' load", f"{found.loaded_mb:.0f} MB"],
        [f"memory per idle connection, of {found.connections}", f"{found.connection_kb:.1f} KB"],
        [
            "memory after rounds of photos, faces looked for",
            ", ".join(f"{each:.0f}" for each in found.mixed_mb) + " MB",
        ],
        ["CPU while idle", f"{found.cpu_share:.2%} of a core"],
    ]
    return Grid("idle", ["what", "measured"], rows)


def history_grids(result: HistoryResult) -> list[Grid]:
    """What each question took, and what predictions noticed."""
    note = f"{result.database}, {result.rows:,} rows, filled in {result.fill_seconds:.0f} s"
    columns = ["question", "whose", "over", "rows", "asked", "p50 ms", "p99 ms"]
    grid = Grid("history and stats", columns, note=note)
    for each in result.answered:
        shown = [f"{each.rows:,}" if each.rows is not None else "-", str(each.asked)]
        times = [f"{value:.1f}" if value is not None else "gave up" for value in (each.p50, each.p99)]
        grid.rows.append([each.question, each.whose, each.span, *shown, *times])
    beside = misbehaviour_grid(result.disturbances, "predictions, while two others ask without a pause")
    return [grid, beside]


def misbehaviour_grid(
    series: Sequence[Sequence[Disturbance]], title: str = "the others, while one client misbehaves"
) -> Grid:
    """An offence is one row."""
    grid = Grid(title, ["done", "quiet p99 ms", "the others' p99 ms", "times", "p50 ms", "errors"])
    for results in series:
        grid.rows.append(
            [
                results[0].offence,
                f"{spread([each.quiet_p99 for each in results]):.2f}",
                f"{spread([each.p99 for each in results]):.2f}",
                f"{spread([each.factor for each in results]):.2f}",
                f"{spread([each.p50 for each in results]):.2f}",
                str(sum(each.failed for each in results)),
            ]
        )
    return grid


def slo_grid(outcomes: Sequence[Outcome], load: str) -> Grid:
    """What was asked for and what was measured."""
    grid = Grid(f"objectives: {load}", ["objective", "measured", "met"])
    for outcome in outcomes:
        value = outcome.measured
        unit = "" if outcome.objective.name in ("rps", "goodput", "errors") else " ms"
        shown = "-" if value is None else f"{value:,.2f}{unit}"
        grid.rows.append([outcome.objective.text, shown, "yes" if outcome.met else "NO"])
    return grid
