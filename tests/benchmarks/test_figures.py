"""Summaries, objectives, ratios, the knee, tables, plots and the report, on figures that are known."""

from __future__ import annotations

import io
import json
import math
import re
import threading
import time
from dataclasses import astuple, replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from benchmarks.commands import app
from benchmarks.compare import Paired, against_limit
from benchmarks.limit import LimitResult
from benchmarks.load import LoadPlan, LoadResult
from benchmarks.options import print_grid
from benchmarks.peers.compare import OURS, PeerResult, peers_grid
from benchmarks.percentiles import latency
from benchmarks.persistence import Storing, StoringResult
from benchmarks.plots import plot_profile, plot_shares, plot_sweep
from benchmarks.profile import Profile
from benchmarks.quiet import busy_seconds, wait_until_quiet
from benchmarks.report import write_report, write_results
from benchmarks.slo import check_slo, parse_slo
from benchmarks.spread import spread
from benchmarks.stages import Stages
from benchmarks.suite import burst_grid
from benchmarks.sweep import Sweep, find_knee
from benchmarks.tables import limit_grid, load_grid, profile_grid, ratio_grid, storing_grid, sweep_grid
from benchmarks.target import Target
from benchmarks.workload import Workload, make_workload
from tests.benchmarks.harness import LIMIT, LOAD

PROFILE = Profile(
    "64x64",
    "json",
    64,
    1000,
    {"run": 300.0, "decode": 40.0, "base64": 5.0, "json": 7.0},
    352.0,
    360.0,
    9.0,
    50.0,
    3.0,
)


def at_rate(rate: float, p99: float, served: float = 1.0) -> LoadResult:
    """A point of an open loop."""
    return replace(
        LOAD,
        rate=rate,
        succeeded=int(2 * rate * served),
        throughput=rate * served,
        latency=replace(LOAD.latency, p99=p99),
    )


def test_percentiles_are_in_milliseconds() -> None:
    """Each is its own share of the way from the first to the last, in whatever order they came."""
    result = latency([number / 1000 for number in range(1000, -1, -1)])
    assert astuple(result) == pytest.approx((500, 900, 990, 999, 1000))


def test_a_spread_is_the_median_and_the_range() -> None:
    """One repeat has no range."""
    assert f"{spread([3.0, 1.0, 2000.0]):,.0f}" == "3 (1-2,000)"
    assert f"{spread([3.0]):.1f}" == "3.0"


def test_a_repeat_without_answers_is_later_than_any() -> None:
    """Whichever of them it is: of three p99, the median is not the lowest."""
    for times in ([math.nan, 5.0, 6.0], [5.0, math.nan, 6.0], [5.0, 6.0, math.nan]):
        assert f"{spread(times):.0f}" == "6 (5-inf)"


def test_a_peer_without_answers_spent_no_known_time_on_each() -> None:
    """It is left out, and not taken for one that answers for nothing."""
    none = replace(LOAD, throughput=0.0, server_cpu_per_request_us=None)
    results = [PeerResult(name, load) for load in (LOAD, none) for name in (OURS, "mosec")]
    assert [row[7] for row in peers_grid(results).rows] == ["500", "500"]
    assert peers_grid([PeerResult(OURS, LOAD), PeerResult("mosec", none)]).rows[1][7] == "-"


def test_a_peer_is_held_against_the_service_round_by_round() -> None:
    """How many times theirs our rate is; a slow round slows both, and counts against neither."""
    rates = [(OURS, 3000.0), ("mosec", 1000.0), (OURS, 600.0), ("mosec", 200.0)]
    grid = peers_grid([PeerResult(name, replace(LOAD, throughput=rate)) for name, rate in rates])
    assert grid.rows[1][:4] == ["mosec", "64", "600 (200-1,000)", "3.00 (3.00-3.00)"]


def test_objectives_are_held_against_the_median_of_the_repeats() -> None:
    """Latency and errors from above, rates from below; units are converted."""
    repeats = [replace(LOAD, throughput=rate, goodput=rate / 2) for rate in (1000.0, 2000.0, 9000.0)]
    outcomes = check_slo(parse_slo("p99=0.03s,p50=9ms,rps=2000,goodput=3000,errors=0,cpu=501us"), repeats)
    assert [outcome.met for outcome in outcomes] == [True, False, True, False, True, True]
    assert [outcome.measured for outcome in outcomes[2:4]] == [2000, 1000]


def test_errors_of_any_repeat_miss_their_objective() -> None:
    """The median of three would pass over one that failed. A wrong answer is one."""
    repeats = [LOAD, replace(LOAD, errors={"overloaded": 6}, wrong=1), LOAD]
    (outcome,) = check_slo(parse_slo("errors=0"), repeats)
    assert outcome.measured == 7
    assert not outcome.met


def test_repeats_without_answers_are_later_than_any() -> None:
    """Two of three that have none miss a latency, whichever of them they are."""
    none = replace(LOAD, latency=latency([]))
    (outcome,) = check_slo(parse_slo("p99=1s"), [none, LOAD, none])
    assert not outcome.met


def test_no_answers_meet_no_latency() -> None:
    """NaN is below every bound and above every bound, and is a miss all the same."""
    (outcome,) = check_slo(parse_slo("p99=1s"), [replace(LOAD, latency=latency([]))])
    assert not outcome.met


def test_cpu_of_a_server_that_is_not_ours_is_a_miss() -> None:
    """What cannot be measured is not met."""
    (outcome,) = check_slo(parse_slo("cpu=1s"), [replace(LOAD, server_cpu_per_request_us=None)])
    assert outcome.measured is None
    assert not outcome.met


@pytest.mark.parametrize(
    "text",
    ["", "p99", "p98=1ms", "p99=10", "p99=ms", "rps=many", "rps=10ms", "rps=nan", "errors=inf"],
)
def test_a_malformed_objective_is_an_error(text: str) -> None:
    """The message shows the part that is wrong."""
    with pytest.raises(ValueError, match=text.partition("=")[2] or text or "NAME=VALUE"):
        parse_slo(text)


def test_the_limit_is_scaled_by_the_cores_that_the_generator_leaves() -> None:
    """Half a core of two is a quarter of the machine: 2000 of 3000 are two thirds."""
    pair = Paired(LIMIT, LOAD)
    assert pair.share == pytest.approx(2000 / (4000 * 0.75))
    assert pair.plain_share == pytest.approx(0.5)
    assert pair.cpu_ratio == pytest.approx(1.25)


@pytest.mark.parametrize("faster", [1, 8])
def test_the_service_is_held_against_the_faster_loop(faster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image at a time or eight, whichever the machine likes better."""

    class Bench:
        @staticmethod
        def measure(workers: str, size: str, batch: int, *_: object) -> LimitResult:
            return replace(LIMIT, batch=batch, throughput=5000.0 if batch == faster else 4000.0)

    monkeypatch.setattr("benchmarks.compare.load", lambda *_: LOAD)
    (pair,) = against_limit(Bench(), Target(""), make_workload("64x64"), LoadPlan(), 1)  # type: ignore[arg-type]
    assert (pair.limit.batch, pair.limit.throughput, pair.call) == (faster, 5000, None)


def test_one_client_is_held_against_one_call() -> None:
    """What is told is the time beyond the call; of many clients, who wait for each other, nothing is."""
    call = replace(LOAD.latency, p50=LOAD.latency.p50 - 0.25)
    assert Paired(LIMIT, LOAD, call).beyond_call_ms == pytest.approx(0.25)
    assert Paired(LIMIT, LOAD).beyond_call_ms is None
    assert ratio_grid([[Paired(LIMIT, LOAD, call)]]).rows[0][6] == "0.25"


def test_what_others_take_is_held_against_neither() -> None:
    """The loop had one core of two and made 4000; the service had one and a half, less the generator's half."""
    pair = Paired(replace(LIMIT, others_cores=1.0), replace(LOAD, others_cores=0.5))
    assert pair.share == pytest.approx(2000 / 4000)


@pytest.mark.parametrize("others", [(2.0, 0.0), (2.5, 2.5), (0.0, 1.5)])
def test_where_others_took_all_cores_there_is_no_share(others: tuple[float, float]) -> None:
    """Others on the cores of the host that a container has not: a dash in the table and in the plot."""
    loop, service = others
    pair = Paired(replace(LIMIT, others_cores=loop), replace(LOAD, others_cores=service))
    assert pair.share is None
    assert ratio_grid([[pair]]).rows[0][3] == "-"
    assert "<svg" in plot_shares([[pair], [Paired(LIMIT, LOAD)]])


def test_waiting_for_a_quiet_machine_has_an_end() -> None:
    """A core that is kept busy is no quiet machine, and its seconds are counted."""
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            pass

    thread = threading.Thread(target=burn)
    before = busy_seconds()
    thread.start()
    try:
        assert not wait_until_quiet(0.6)
    finally:
        stop.set()
        thread.join()
    assert busy_seconds() - before > 0.2


def test_the_knee_is_the_last_rate_before_latency_runs_away() -> None:
    """A rate that is not served ends the search, and so does a p99 of more than four times the lowest rate's."""
    points = [at_rate(1000, 2), at_rate(2000, 7), at_rate(3000, 9), at_rate(4000, 3)]
    knee = find_knee(points)
    assert knee is not None
    assert knee.rate == 2000
    assert find_knee([at_rate(1000, 2, served=0.5)]) is None
    assert find_knee([at_rate(100, 2, served=0.85)]) is not None, "170 of 200 is within chance"
    assert find_knee([replace(at_rate(1000, 2), errors={"overloaded": 1})]) is None


def test_tables_hold_medians_ranges_and_error_codes() -> None:
    """One row per setting, whatever the number of repeats."""
    other = replace(LOAD, throughput=3000.0, errors={"overloaded": 2}, wrong=1)
    (row,) = load_grid([[LOAD, other, LOAD]]).rows
    assert "2,000 (2,000-3,000)" in row
    assert "overloaded:2 wrong:1" in row
    assert len(limit_grid([LIMIT, replace(LIMIT, workers="processes"), LIMIT]).rows) == 2
    assert ratio_grid([[Paired(LIMIT, LOAD)]]).rows[0][3:] == ["0.67", "0.50", "1.25", "-", "0.00"]
    assert "knee: 1,000/s" in sweep_grid(Sweep("64x64", 2000, [LOAD], [at_rate(1000, 2)])).note
    assert profile_grid(PROFILE).rows[-2][:2] == ["outside base64, decode, run", "7.0"]


@pytest.mark.parametrize("clients", [(64,), (1, 64, 256)])
def test_a_narrow_terminal_gets_every_figure(
    clients: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 80 columns the widest table has its rows as columns; no cell is cut off, and words stay whole."""
    output = io.StringIO()
    monkeypatch.setattr("benchmarks.options.console", Console(file=output, width=80, highlight=False))
    other = replace(LOAD, throughput=3000.0)
    print_grid(load_grid([[replace(LOAD, clients=count), other] for count in clients]))
    print_grid(profile_grid(PROFILE))
    loads, profile = output.getvalue().split("hot path")
    assert "…" not in loads + profile
    assert loads.count("2,500") == len(clients)
    assert [line[2:9] for line in profile.splitlines() if line.startswith("│ ")][:2] == ["run    ", "decode "]


def test_storing_is_compared_round_by_round() -> None:
    """The ratio is within a round, so that a slow round does not count against one of them."""
    rates: list[tuple[Storing, float]] = [
        ("dropped", 1000),
        ("sqlite", 900),
        ("dropped", 2000),
        ("sqlite", 1800),
    ]
    results = [StoringResult(storing, replace(LOAD, throughput=rate)) for storing, rate in rates]
    assert storing_grid(results).rows[1][2] == "0.900 (0.900-0.900)"


def test_each_load_in_bursts_has_its_own_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What few clients get is not mixed with what many do."""

    def measured(_: Target, __: Workload, plan: LoadPlan) -> LoadResult:
        return replace(LOAD, clients=plan.clients, bursts_ms=[10.0 * plan.clients, 20.0 * plan.clients])

    monkeypatch.setattr("benchmarks.commands.run_one", measured)
    arguments = "load --rate 10 --arrivals burst --clients 2,4 --url ws://127.0.0.1:1"
    shown = CliRunner().invoke(app, arguments.split()).output
    assert "64x64, 2 clients: 30 (20-40) ms" in shown
    assert "64x64, 4 clients: 60 (40-80) ms" in shown


def test_what_had_no_deadline_is_not_told_as_within_one() -> None:
    """Of a network so slow that a thousand a second are more than it can: paced clients had all the time."""
    paced = replace(at_rate(1000, 30), arrivals="paced")
    excess = replace(at_rate(750, 30), deadline_ms=50.0, goodput=400.0)
    grid = burst_grid([[paced], [excess]], saturation=500.0)
    assert grid.rows == [["750/s asked: answers within 50 ms, of saturation", "0.80"]]


def test_the_report_is_one_file_with_plots_inside(tmp_path: Path) -> None:
    """Tables are escaped, SVG is not, nothing is loaded from elsewhere; the JSON has the repeats."""
    sweep = Sweep("64x64", 2000, [LOAD], [at_rate(500, 2), at_rate(1000, 3)])
    pairs = [[Paired(LIMIT, LOAD)]]
    machine = {"processor": "a < b", "packages": {"numpy": "2"}}
    plots = [plot_sweep(sweep), plot_shares(pairs), plot_profile(PROFILE)]
    page = write_report(tmp_path, machine, {"repeats": 3}, [ratio_grid(pairs), *plots]).read_text()
    assert page.count("<svg") == page.count("</svg>") == 3
    assert "a &lt; b" in page
    assert 'src="' not in page
    results = json.loads(write_results(tmp_path, {"pairs": pairs}).read_bytes())
    assert results["pairs"][0][0]["load"]["throughput"] == 2000


def test_plots_in_one_page_share_no_ids() -> None:
    """An id names one thing, and what refers to it finds it in its own plot."""
    sweep = Sweep("64x64", 2000, [LOAD], [at_rate(500, 2), at_rate(1000, 3)])
    seen: set[str] = set()
    for plot in (plot_sweep(sweep), plot_shares([[Paired(LIMIT, LOAD)]]), plot_profile(PROFILE)):
        ids = re.findall(r' id="([^"]+)"', plot)
        used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', plot)
        assert ids
        assert {first or second for first, second in used} <= set(ids)
        assert seen.isdisjoint(ids)
        seen.update(ids)


def test_the_same_figures_make_the_same_plot() -> None:
    """A plot in the documentation changes only when its figures do."""
    assert plot_profile(PROFILE) == plot_profile(PROFILE)


def test_stages_count_each_microsecond_once() -> None:
    """A stage that calls another is not charged for it, and waiting costs nothing."""
    stages = Stages()

    def burn(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    inner = stages._timed(lambda: burn(0.02), "run", "Engine.run")

    def outer() -> None:
        burn(0.01)
        inner()
        time.sleep(0.05)

    stages._timed(outer, "predictor", "Predictor.serve")()
    assert stages._seconds["run"] == pytest.approx(0.02, abs=0.004)
    assert stages._seconds["predictor"] == pytest.approx(0.01, abs=0.004)
