"""Metrics of all workers together, for Prometheus.

Each worker counts in its row of `cells`, and any of them can add up all rows: whichever worker is asked for /metrics
answers for the whole service. Counting costs a tenth of a microsecond.

Times are in seconds, as Prometheus has it; buckets start at 50 µs, since a prediction takes less than 1 ms.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from service.batching.predictor import Request
from service.errors import ERROR_CODES, Internal
from service.processes.cells import Gauge, SharedCells

_DURATIONS = (
    0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005,
    0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
_BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
_STAGES = ("decode", "queue", "inference", "total", "store", "reply")


# Why a connection was not let in, or was closed with 1008: other codes are the protocol's, and not counted.
REFUSALS = (
    "origin", "unauthorized", "address_limit", "connection_limit", "handshake_limit",
    "no_credential", "guessing", "slow_reader", "slow_writer", "small_frames",
)  # fmt: skip


class _Layout:
    """Which cell of a row holds what."""

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.gauges = 0
        self.predictions = self.gauges + len(Gauge)
        self.errors = self.predictions + len(self.labels)
        self.refusals = self.errors + len(ERROR_CODES)
        self.unstored = self.refusals + len(REFUSALS)
        self.written = self.unstored + 1
        self.rejected = self.written + 1
        self.abandoned = self.rejected + 1
        self.cpu_seconds = self.abandoned + 1
        # A histogram is its buckets, one more for what is beyond them, and the sum.
        self.stages = self.cpu_seconds + 1
        self.stage_size = len(_DURATIONS) + 2
        self.batches = self.stages + len(_STAGES) * self.stage_size
        self.size = self.batches + len(_BATCH_SIZES) + 2


class Metrics(Collector):
    """Counts for one worker, and tells for all.

    Args:
        labels: what the model tells apart.
        shared: the memory of all workers.
        worker: which row is this process'.
        versions: the tags of the versions that it serves, by their numbers.
    """

    def __init__(
        self,
        labels: Sequence[str],
        shared: SharedCells,
        worker: int,
        versions: Sequence[str],
    ) -> None:
        self._layout = _Layout(labels)
        self._shared = shared
        self.reloads = self._shared.reloads
        self._versions = self._shared.versions.counting(worker, versions)
        self._cells = self._shared.row(worker)
        self._rows = self._shared.rows()
        self._emotion_cell = {label: self._layout.predictions + i for i, label in enumerate(labels)}
        self._error_cell = {code: self._layout.errors + i for i, code in enumerate(ERROR_CODES)}
        self._refusal_cell = {reason: self._layout.refusals + i for i, reason in enumerate(REFUSALS)}
        # What this process, and its store, told the last time: the cells go on where an earlier process ended.
        self._cpu_seconds = 0.0
        self._written = self._rejected = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)
        if self._layout.size > len(self._cells):
            raise ValueError(f"{len(labels)} labels are more than can be counted")

    def answered(self, requests: Sequence[Request]) -> None:
        """Count the requests of one batch, whose replies have just been sent."""
        cells, layout, now = self._cells, self._layout, time.perf_counter()
        counted: set[int] = set()
        for request in requests:
            timing = request.timing
            if timing is None:
                assert request.error is not None
                self.failed(request.error)
                if request.error == Internal.code:
                    self._versions.failed(request.version)
                continue
            assert request.emotion is not None
            cells[self._emotion_cell[request.emotion]] += 1
            self._versions.predicted(request.version, request.model_seconds)
            if not request.stored:
                cells[layout.unstored] += 1
            self._observe_duration(0, timing.decode / 1000)
            self._observe_duration(1, timing.queue / 1000)
            self._observe_duration(3, timing.total / 1000)
            if request.version not in counted:  # each ran its own part of the batch
                counted.add(request.version)
                self._observe_duration(2, timing.inference / 1000)
                self._observe_duration(4, request.recorded - request.received - timing.total / 1000)
                self._observe_duration(5, now - request.recorded)
                cell = layout.batches
                cells[cell + bisect_left(_BATCH_SIZES, timing.batch_size)] += 1
                cells[cell + len(_BATCH_SIZES) + 1] += timing.batch_size

    def _observe_duration(self, stage: int, seconds: float) -> None:
        cell = self._layout.stages + stage * self._layout.stage_size
        self._cells[cell + bisect_left(_DURATIONS, seconds)] += 1
        self._cells[cell + len(_DURATIONS) + 1] += seconds

    def failed(self, code: str) -> None:
        """Count a request that was answered with an error."""
        self._cells[self._error_cell[code]] += 1

    def refused(self, reason: str) -> None:
        """Count a connection that was refused or closed; `reason` is one of `REFUSALS`."""
        self._cells[self._refusal_cell[reason]] += 1

    def abandoned(self, count: int) -> None:
        """Count requests whose client left before they were looked at."""
        self._cells[self._layout.abandoned] += count

    def set(self, gauge: Gauge, value: float) -> None:
        """Set this worker's share of a gauge."""
        self._cells[self._layout.gauges + gauge] = value

    def stored(self, written: int, rejected: int) -> None:
        """Take over what this process' store has counted since it was opened."""
        self._cells[self._layout.written] += written - self._written
        self._cells[self._layout.rejected] += rejected - self._rejected
        self._written, self._rejected = written, rejected

    def spent(self, cpu_seconds: float) -> None:
        """Take over the CPU time that this process has used since it was started."""
        self._cells[self._layout.cpu_seconds] += cpu_seconds - self._cpu_seconds
        self._cpu_seconds = cpu_seconds

    @property
    def written(self) -> int:
        """Predictions in the database, over all workers that there were."""
        return int(self._sum(self._layout.written))

    def total(self, gauge: Gauge) -> float:
        """A gauge over all workers."""
        return self._sum(self._layout.gauges + gauge)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _sum(self, cell: int) -> float:
        return sum(row[cell] for row in self._rows)

    def describe(self) -> list[Metric]:
        """Nothing is known before it is collected; this keeps the registry from collecting to find out."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics, added up over the workers."""
        layout = self._layout
        yield self._by_label(
            "visionai_predictions", "Predictions answered, by emotion", "emotion", self._emotion_cell
        )
        yield from self._by_version()
        yield self._by_label(
            "visionai_errors", "Requests answered with an error, by code", "code", self._error_cell
        )
        yield self._by_label(
            "visionai_connections_refused",
            "Connections that were not let in, or were closed with 1008, by reason",
            "reason",
            self._refusal_cell,
        )
        for name, documentation, cell in (
            (
                "predictions_unstored",
                "Predictions answered without being stored, with a null prediction_id",
                layout.unstored,
            ),
            (
                "requests_abandoned",
                "Requests dropped while they waited, because their client had gone",
                layout.abandoned,
            ),
            ("store_written", "Faces written to the database, a row each", layout.written),
            (
                "store_rejected",
                "Faces that the database refused for a value in them; the log names them",
                layout.rejected,
            ),
            (
                "cpu_seconds",
                "CPU time of the workers, of those that were replaced too",
                layout.cpu_seconds,
            ),
        ):
            yield CounterMetricFamily(f"visionai_{name}", documentation, value=self._sum(cell))
        durations = HistogramMetricFamily(
            "visionai_stage_duration_seconds",
            "Time in a stage: of one request, or of one batch for inference, store and reply; total is from frame to "
            "prediction, which is then stored and replied",
            labels=["stage"],
        )
        for index, stage in enumerate(_STAGES):
            buckets, total = self._histogram(layout.stages + index * layout.stage_size, _DURATIONS)
            durations.add_metric([stage], buckets, total)
        yield durations
        buckets, total = self._histogram(layout.batches, _BATCH_SIZES)
        yield HistogramMetricFamily(
            "visionai_batch_size",
            "Faces of a batch that the model scored at once",
            buckets=buckets,
            sum_value=total,
        )
        reloads = CounterMetricFamily(
            "visionai_reloads",
            "Reloads of model and settings; one that failed left the old ones serving",
            labels=["result"],
        )
        reloads.add_metric(["done"], self.reloads.done)
        reloads.add_metric(["failed"], self.reloads.failed)
        yield reloads
        yield from self._gauges()

    def _by_label(self, name: str, documentation: str, label: str, cells: Mapping[str, int]) -> Metric:
        """A counter that has a cell for each value of a label."""
        counter = CounterMetricFamily(name, documentation, labels=[label])
        for value, cell in cells.items():
            counter.add_metric([value], self._sum(cell))
        return counter

    def _by_version(self) -> Iterator[Metric]:
        predictions, failures, seconds = (
            CounterMetricFamily(
                f"visionai_version_{name}", f"{documentation}, by version of the model", labels=["version"]
            )
            for name, documentation in (
                ("predictions", "Predictions answered"),
                ("failures", "Requests that failed as `internal`"),
                ("inference_seconds", "Time in the model, of predictions answered"),
            )
        )
        for tag, counts in self._shared.versions.totals().items():
            predictions.add_metric([tag], counts.predictions)
            failures.add_metric([tag], counts.failures)
            seconds.add_metric([tag], counts.seconds)
        yield from (predictions, failures, seconds)

    def _gauges(self) -> Iterator[Metric]:
        for gauge, name, documentation in (
            (Gauge.CONNECTIONS, "visionai_connections", "Connected clients"),
            (Gauge.QUEUE_DEPTH, "visionai_queue_depth", "Requests waiting to be looked at"),
            (Gauge.STORE_PENDING, "visionai_store_pending", "Faces not yet in the database"),
            (Gauge.READY, "visionai_workers_ready", "Workers that can predict"),
            (Gauge.RESIDENT_BYTES, "visionai_resident_memory_bytes", "Resident memory of the workers"),
        ):
            yield GaugeMetricFamily(name, documentation, value=self.total(gauge))
        failing = GaugeMetricFamily(
            "visionai_store_failing",
            "Workers that cannot write: to the journal, so that predictions are answered unstored, or to the database",
            labels=["part"],
        )
        failing.add_metric(["journal"], self.total(Gauge.JOURNAL_FAILING))
        failing.add_metric(["database"], self.total(Gauge.DATABASE_FAILING))
        yield failing

    def _histogram(self, cell: int, bounds: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
        """Cumulative buckets, as Prometheus has them, and the sum."""
        count = 0.0
        buckets = []
        for index, bound in enumerate((*bounds, float("inf"))):
            count += self._sum(cell + index)
            buckets.append(("+Inf" if bound == float("inf") else str(float(bound)), count))
        return buckets, self._sum(cell + len(bounds) + 1)
