"""What the figures are made of: counts and times that are known, and what comes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from benchmarks import limit
from benchmarks.clients import Tally
from benchmarks.limit import LimitBench
from benchmarks.load import LoadPlan, _result, _Spent
from benchmarks.target import Usage
from benchmarks.workload import make_workload
from service.settings import DEFAULT_MODEL

BURSTS = LoadPlan(clients=3, rate=100.0, arrivals="burst")
SPENT = _Spent(elapsed=2.0, server=1.5, generator=0.5, machine=3.0, usage=Usage(9.0, 200.0, 150.0))


class Job:
    """Each thread works on four batches in half a second."""

    def __init__(self, model: Path, callers: int) -> None:
        """All threads share it."""

    def run_for(self, size: str, batch: int, detect: str, seconds: float) -> tuple[list[float], float]:
        """The seconds of each batch, and of all together."""
        return [0.125] * 4, 0.5


@pytest.mark.parametrize(("busy", "others"), [(5.0, 1.5), (2.0, 0.0), (1.9, 0.0)])
def test_the_limit_is_of_all_threads_and_others_are_who_was_busy_beside_them(
    monkeypatch: pytest.MonkeyPatch, busy: float, others: float
) -> None:
    """Images per second of the threads together, the process' CPU time per image, and what is left of the machine's."""

    def passing(seconds: float) -> Iterator[float]:
        yield 100.0
        yield 100.0 + seconds

    elapsed, cpu, machine = passing(2.0), passing(2.0), passing(busy)
    times = SimpleNamespace(perf_counter=elapsed.__next__, process_time=cpu.__next__)
    monkeypatch.setattr(limit, "time", times)
    monkeypatch.setattr(limit, "busy_seconds", machine.__next__)
    monkeypatch.setattr(limit, "Job", Job)
    result = LimitBench(Path("model.onnx"), 3).measure("threads", "64x64", batch=5, seconds=0.5)
    images = 3 * 4 * 5
    assert result.throughput * 0.5 == pytest.approx(images)
    assert result.cpu_per_image_us * images == pytest.approx(2.0 * 1e6)
    assert result.others_cores == pytest.approx(others)


def test_the_limits_processes_are_not_charged_with_others_for_their_own_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine where nobody else does anything, others were idle in the first measurement, too."""
    own = psutil.Process()

    def busy_seconds() -> float:
        return sum(sum(each.cpu_times()[:2]) for each in (own, *own.children()))

    monkeypatch.setattr(limit, "busy_seconds", busy_seconds)
    with limit.limit_bench(DEFAULT_MODEL, 2) as bench:
        assert bench.measure("processes", "64x64", seconds=0.5).others_cores < 0.1


def test_a_load_is_reckoned_per_answer_and_per_second() -> None:
    """CPU time per answer, cores that neither server nor generator had, the slowest client's share of the mean."""
    tally = Tally(float("inf"), latencies=[0.01] * 600)
    result = _result(LoadPlan(clients=3), make_workload("64x64"), tally, [100, 200, 300], SPENT)
    assert result.server_cpu_per_request_us == pytest.approx(2500.0)
    assert result.others_cores == pytest.approx(0.5)
    assert result.generator_cores == pytest.approx(0.25)
    assert result.slowest_client_share == pytest.approx(0.5)
    assert result.bursts_ms == []
    of_others = _result(
        LoadPlan(clients=3), make_workload("64x64"), tally, [100, 200, 300], replace(SPENT, server=None)
    )
    assert of_others.server_cpu_per_request_us is None
    assert of_others.others_cores is None


def test_bursts_that_the_interval_may_have_cut_are_left_out() -> None:
    """The first and the last of them; of each of the others counts the last answer."""
    tally = Tally(float("inf"), latencies=[0.01] * 4, last_of_due={1.0: 0.5, 2.0: 0.02, 3.0: 0.03, 4.0: 0.7})
    result = _result(BURSTS, make_workload("64x64"), tally, [2, 1, 1], SPENT)
    assert result.bursts_ms == pytest.approx([20.0, 30.0])
    assert (
        _result(replace(BURSTS, arrivals="poisson"), make_workload("64x64"), tally, [4], SPENT).bursts_ms
        == []
    )
