"""The cells that workers count in, and what is told of them."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.batching.predictor import Request
from service.errors import ERROR_CODES, DeadlineExceeded, Internal
from service.processes.cells import ADDRESS_CELLS, Gauge, SharedCells
from service.protocol.replies import Timing
from service.telemetry.metrics import REFUSALS, Metrics

LABELS = ("happy", "sad")


def told(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample, by its name without the prefix and its labels' values, in the order of their names."""
    return {
        (
            sample.name.removeprefix("visionai_"),
            *(sample.labels[key] for key in sorted(sample.labels)),
        ): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def answered(emotion: str, timing: Timing, *, stored: bool = True, version: int = 0) -> Request:
    """A request that was answered."""
    client: Any = object()
    request = Request(client, 1, b"", 0.0)
    request.emotion, request.timing, request.stored, request.model_seconds = emotion, timing, stored, 0.002
    request.version = version
    request.recorded = timing.total / 1000 + 0.25
    return request


def failed(error: type[Internal | DeadlineExceeded]) -> Request:
    """A request that was answered with an error."""
    client: Any = object()
    request = Request(client, 1, b"", 0.0)
    request.fail(error("no"))
    return request


def test_a_batch_is_counted_in_seconds_stage_by_stage() -> None:
    """Of all workers together; what the requests of a batch share is counted once, and buckets hold those below."""
    shared = SharedCells(2)
    workers = [Metrics(LABELS, shared, worker, ("v1",)) for worker in range(2)]
    batch = [
        *[answered("happy", Timing(decode=0.05, queue=2.0, inference=3.0, total=6.0, batch_size=3))] * 2,
        answered(
            "sad", Timing(decode=0.06, queue=5000.0, inference=3.0, total=7.0, batch_size=3), stored=False
        ),
        failed(Internal),
        failed(DeadlineExceeded),
    ]
    for metrics in (*workers, workers[0]):
        metrics.answered(batch)
    found = told(workers[0])
    sums = {"decode": 0.00048, "queue": 15.012, "inference": 0.009, "total": 0.057, "store": 0.75}
    for stage, seconds in sums.items():
        assert found["stage_duration_seconds_sum", stage] == pytest.approx(seconds)
        count = 3 if stage in ("inference", "store") else 9
        assert found["stage_duration_seconds_count", stage] == count
        assert found["stage_duration_seconds_bucket", "+Inf", stage] == count
    below = [found["stage_duration_seconds_bucket", bound, "decode"] for bound in ("5e-05", "0.0001", "2.5")]
    assert below == [6, 9, 9]
    assert found["stage_duration_seconds_bucket", "2.5", "queue"] == 6
    sizes = [found["batch_size_bucket", bound] for bound in ("2.0", "3.0", "+Inf")]
    assert (sizes, found["batch_size_sum",]) == ([0, 3, 3], 9)
    assert (found["predictions_total", "happy"], found["predictions_total", "sad"]) == (6, 3)
    assert found["predictions_unstored_total",] == 3
    assert (found["errors_total", "internal"], found["errors_total", "deadline_exceeded"]) == (3, 3)
    assert (found["version_predictions_total", "v1"], found["version_failures_total", "v1"]) == (9, 3)
    assert found["version_inference_seconds_total", "v1"] == pytest.approx(0.018)


def test_each_version_counts_its_own_run_of_a_batch() -> None:
    """A batch in which a canary had a share went through two models."""
    metrics = Metrics(LABELS, SharedCells(1), 0, ("v1", "v2"))
    runs = [
        Timing(decode=0.05, queue=2.0, inference=float(size), total=6.0, batch_size=size) for size in (3, 1)
    ]
    metrics.answered([answered("happy", runs[version], version=version) for version in (0, 1, 0, 0)])
    found = told(metrics)
    assert (found["batch_size_sum",], found["batch_size_bucket", "+Inf"]) == (4, 2)
    assert found["stage_duration_seconds_sum", "inference"] == pytest.approx(0.004)


def test_each_figure_has_a_place_of_its_own() -> None:
    """Counted to different numbers, none is told as another."""
    metrics = Metrics(LABELS, SharedCells(1), 0, ("v1",))
    for number, code in enumerate(ERROR_CODES, 10):
        for _ in range(number):
            metrics.failed(code)
    for number, reason in enumerate(REFUSALS, 40):
        for _ in range(number):
            metrics.refused(reason)
    for gauge in Gauge:
        metrics.set(gauge, 100 + gauge)
    metrics.abandoned(200)
    metrics.stored(201, 202)
    metrics.spent(203.5)
    for number, error in enumerate((None, "no model", "x" * 2000)):
        for _ in range(number + 1):
            metrics.reloads.count(error)
    assert metrics.reloads.last_error == "x" * 1023  # as much as has room
    found = told(metrics)
    assert [found["errors_total", code] for code in ERROR_CODES] == [*range(10, 10 + len(ERROR_CODES))]
    assert [found["connections_refused_total", reason] for reason in REFUSALS] == [
        *range(40, 40 + len(REFUSALS))
    ]
    assert [metrics.total(gauge) for gauge in Gauge] == [100 + gauge for gauge in Gauge]
    for gauge, *name in (
        (Gauge.CONNECTIONS, "connections"),
        (Gauge.QUEUE_DEPTH, "queue_depth"),
        (Gauge.STORE_PENDING, "store_pending"),
        (Gauge.READY, "workers_ready"),
        (Gauge.RESIDENT_BYTES, "resident_memory_bytes"),
        (Gauge.JOURNAL_FAILING, "store_failing", "journal"),
        (Gauge.DATABASE_FAILING, "store_failing", "database"),
    ):
        assert found[*name,] == 100 + gauge
    counters = (
        "requests_abandoned",
        "store_written",
        "store_rejected",
        "cpu_seconds",
        "predictions_unstored",
    )
    assert [found[f"{name}_total",] for name in counters] == [200, 201, 202, 203.5, 0]
    assert (found["reloads_total", "done"], found["reloads_total", "failed"]) == (1, 5)
    assert found["stage_duration_seconds_count", "decode"] == found["batch_size_count",] == 0


def test_counters_go_on_where_a_worker_ended() -> None:
    """It tells what it counted since its start, and so does its successor; what was connected to it is not."""
    shared = SharedCells(2)
    other = Metrics(LABELS, shared, 1, ("v1",))
    for _ in range(2):
        metrics = Metrics(LABELS, shared, 0, ("v1",))
        for count in (3, 5):
            metrics.stored(10 * count, count)
            metrics.spent(count / 2)
        for each in (metrics, other):
            each.set(Gauge.CONNECTIONS, 4)
        for row in shared.address_rows():
            row[0] = row[ADDRESS_CELLS - 1] = 1
        shared.forget(0)
    found = told(other)
    assert (other.written, found["store_rejected_total",], found["cpu_seconds_total",]) == (100, 10, 5)
    assert found["connections",] == 4
    assert [sum(row) for row in shared.address_rows()] == [0, 2]


def test_more_labels_than_have_room_are_an_error() -> None:
    """Before a count of one would be another's."""
    shared = SharedCells(1)
    Metrics([str(number) for number in range(300)], shared, 0, ("v1",))
    with pytest.raises(ValueError, match="600 labels are more than can be counted"):
        Metrics([str(number) for number in range(600)], shared, 0, ("v1",))
