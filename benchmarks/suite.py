"""The short set of all benchmarks but the peers: some five minutes, one report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare import Paired, against_limit
from benchmarks.idle import IdleResult, measure_idle
from benchmarks.limit import LimitBench, LimitResult, Workers, limit_bench
from benchmarks.load import LoadPlan, LoadResult, allow_open_files, answered, load
from benchmarks.persistence import StoringResult, compare_storing
from benchmarks.plots import plot_profile, plot_shares, plot_sweep
from benchmarks.profile import Profile, profile
from benchmarks.quiet import wait_until_quiet
from benchmarks.report import Part
from benchmarks.spread import spread
from benchmarks.sweep import SHARES, Sweep, sweep_clients, sweep_rates
from benchmarks.tables import (
    Grid,
    idle_grid,
    limit_grid,
    load_grid,
    profile_grid,
    ratio_grid,
    storing_grid,
    sweep_grid,
)
from benchmarks.target import Target, started_service
from benchmarks.workload import SIZES, make_workload
from service.processes.cpus import available_cpus
from service.settings import Detect

# Says what comes next; called once before each measurement.
Progress = Callable[[str], None]

_MOST_CLIENTS = 1000
_DEADLINE_MS = 50.0

# Size, detection and clients of the loads that are held against the limit.
PAIRS: tuple[tuple[str, Detect, int], ...] = (
    ("64x64-sure", "never", 1),
    ("64x64-unsure", "never", 1),
    ("64x64", "never", 64),
    ("64x64", "never", 256),
    ("64x64", "never", 1000),
    ("224x224", "never", 64),
    ("640x480", "never", 64),
    ("640x480", "auto", 64),
)

# The shortest profile that gets through its warm-up on a slow machine.
_PROFILE_SECONDS = 1.5
_IDLE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Suite:
    """Everything that was measured."""

    limits: list[LimitResult]
    pairs: list[list[Paired]]
    arrivals: list[list[LoadResult]]
    sweep: Sweep
    idle: IdleResult
    storing: list[StoringResult]
    profile: Profile

    def to_json(self) -> dict[str, Any]:
        """The figures of each repeat."""
        return {name: getattr(self, name) for name in self.__slots__}

    def parts(self) -> list[Part]:
        """What the report shows, in order."""
        return [
            ratio_grid(self.pairs),
            plot_shares(self.pairs),
            limit_grid(self.limits),
            load_grid([[pair.load for pair in pairs] for pairs in self.pairs]),
            load_grid(self.arrivals, "open loop: latency from the moment a request was due"),
            burst_grid(self.arrivals, self.sweep.saturation),
            sweep_grid(self.sweep),
            plot_sweep(self.sweep),
            profile_grid(self.profile),
            plot_profile(self.profile),
            storing_grid(self.storing),
            idle_grid(self.idle),
        ]


def burst_grid(arrivals: Sequence[Sequence[LoadResult]], saturation: float) -> Grid:
    """How late the last of a burst is answered, and how much of what is asked too fast is answered in time."""
    grid = Grid(
        "all clients at the same instant, and at 150 % of saturation",
        ["what", "measured"],
    )
    for results in arrivals:
        bursts = [took for result in results for took in result.bursts_ms]
        if bursts:
            grid.rows.append([f"{results[0].clients} at once: last answer", f"{spread(bursts):.0f} ms"])
        elif results[0].deadline_ms is not None:
            shares = [result.goodput / saturation for result in results]
            name = f"{results[0].rate:,.0f}/s asked: answers within {_DEADLINE_MS:.0f} ms, of saturation"
            grid.rows.append([name, f"{spread(shares):.2f}"])
    return grid


def steps(repeats: int) -> int:
    """How often `run_suite` says what comes next."""
    return len(SIZES) * repeats + repeats * len(PAIRS) + 4 * repeats + 4 + len(SHARES) + 1 + 4 * repeats + 1


def seconds_of(seconds: float) -> dict[str, float]:
    """How long each measurement of a part is, by the seconds that `run_suite` was given."""
    return {
        "limit": round(seconds / 3, 3),
        "against the limit": seconds,
        "arrivals": seconds,
        "bursts": seconds + 2,
        "sweep": seconds / 2,
        "idle": _IDLE_SECONDS,
        "storing": seconds,
        # Its warm-up is a number of requests, whatever the time.
        "profile": max(seconds, _PROFILE_SECONDS),
    }


def run_suite(model: Path, repeats: int, seconds: float, patience: float, progress: Progress) -> Suite:
    """Measure everything, `repeats` times, as long as `seconds_of` says; waits for quiet where things are compared."""
    lasting = seconds_of(seconds)
    allow_open_files(_MOST_CLIENTS)
    with limit_bench(model, available_cpus()) as bench:
        limits = _limits(bench, repeats, lasting["limit"], progress)
        with started_service(model) as target:
            pairs = []
            for size, detect, clients in PAIRS:
                plan = LoadPlan(clients=clients, seconds=lasting["against the limit"], warmup=0.5)
                repeated = []
                for pair in against_limit(
                    bench, target, make_workload(size, "json", detect), plan, repeats, patience
                ):
                    progress(f"{size}, {clients} clients against the limit")
                    answered(pair.load)  # or there is no rate to hold others against
                    repeated.append(pair)
                pairs.append(repeated)
            saturation = _saturation(pairs)
            wait_until_quiet(patience)
            arrivals = _arrivals(target, saturation, repeats, lasting, progress)
            sweep = _sweep(target, saturation, lasting["sweep"], progress)
    progress("idle")
    idle = measure_idle(model, seconds=lasting["idle"])
    plan = LoadPlan(clients=64, seconds=lasting["storing"], warmup=0.5)
    storing = compare_storing(
        model, make_workload("64x64"), plan, repeats, patience, lambda: progress("what storing costs")
    )
    progress("profile")
    wait_until_quiet(patience)
    hot_path = profile(model, make_workload("64x64"), seconds=lasting["profile"])
    return Suite(limits, pairs, arrivals, sweep, idle, storing, hot_path)


def _limits(bench: LimitBench, repeats: int, seconds: float, progress: Progress) -> list[LimitResult]:
    """Repeats are the outer loop: what disturbs the machine for a while disturbs one repeat of each."""
    kinds: tuple[Workers, ...] = ("threads", "processes")
    limits = []
    for _ in range(repeats):
        for size in SIZES:
            progress(f"limit, {size}")
            for workers in kinds:
                for batch in (1, 8):
                    limits.append(bench.measure(workers, size, batch, "never", seconds))
        limits.append(bench.measure("threads", "640x480", 1, "auto", seconds))
    return limits


def _saturation(series: Sequence[Sequence[Paired]]) -> float:
    rates = [[p.load.throughput for p in pairs] for pairs in series if pairs[0].load.size == "64x64"]
    return max(spread(values).median for values in rates)


def _arrivals(
    target: Target, saturation: float, repeats: int, lasting: dict[str, float], progress: Progress
) -> list[list[LoadResult]]:
    seconds = lasting["arrivals"]
    paced = LoadPlan(clients=1000, rate=1000, arrivals="paced", seconds=seconds)
    burst = LoadPlan(clients=1000, rate=1000, arrivals="burst", seconds=lasting["bursts"], warmup=0.5)
    brisk = LoadPlan(clients=64, rate=0.7 * saturation, seconds=seconds, warmup=0.5)
    excess = LoadPlan(
        clients=256, rate=1.5 * saturation, deadline_ms=_DEADLINE_MS, seconds=seconds, warmup=0.5
    )
    arrivals = []
    for plan in (paced, burst, brisk, excess):
        results = []
        for _ in range(repeats):
            progress(f"{plan.arrivals} arrivals, {plan.rate:,.0f}/s")
            workload = make_workload("64x64", deadline_ms=plan.deadline_ms)
            results.append(load(target, workload, plan))
        arrivals.append(results)
    return arrivals


def _sweep(target: Target, saturation: float, seconds: float, progress: Progress) -> Sweep:
    workload = make_workload("64x64")
    closed, points = [], []
    for result in sweep_clients(target, workload, (2, 8, 16, 128), seconds):
        progress(f"sweep, {result.clients} clients")
        closed.append(result)
    for result in sweep_rates(target, workload, [share * saturation for share in SHARES], seconds):
        progress(f"sweep, {result.rate:,.0f}/s")
        points.append(result)
    return Sweep("64x64", saturation, closed, points)
