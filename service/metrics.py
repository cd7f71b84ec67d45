"""Prometheus metrics: durations of each stage, batch sizes, depths and outcomes.

Times are in seconds, as Prometheus has it; buckets start at 50 µs, since a prediction takes less than 1 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from service.protocol import Prediction

_DURATIONS = (
    0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005,
    0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
_BATCH_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)


class Metrics:
    """The service's metrics, in a registry of their own so that two services in one process don't clash."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        durations = Histogram(
            "visionai_stage_duration_seconds",
            "Time of one request in a stage; total runs from frame to prediction",
            ["stage"],
            buckets=_DURATIONS,
            registry=self.registry,
        )
        self._decode = durations.labels("decode")
        self._queue = durations.labels("queue")
        self._inference = durations.labels("inference")
        self._total = durations.labels("total")
        self._batch_size = Histogram(
            "visionai_batch_size",
            "Images in one run of the model",
            buckets=_BATCH_SIZES,
            registry=self.registry,
        )
        self._predictions = Counter(
            "visionai_predictions",
            "Predictions answered, by emotion",
            ["emotion"],
            registry=self.registry,
        )
        self._unstored = Counter(
            "visionai_predictions_unstored",
            "Predictions answered without being stored, with a null prediction_id",
            registry=self.registry,
        )
        self._errors = Counter(
            "visionai_errors",
            "Requests answered with an error, by code",
            ["code"],
            registry=self.registry,
        )
        self._abandoned = Counter(
            "visionai_requests_abandoned",
            "Requests dropped while they waited, because their client had gone",
            registry=self.registry,
        )

    def watch(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """Add a gauge that is read when metrics are asked for, not kept up to date."""
        Gauge(name, documentation, registry=self.registry).set_function(read)

    def predicted(self, predictions: Sequence[Prediction], *, stored: bool) -> None:
        """Count the predictions of one run of the model: at least one, all of the same batch."""
        timing = predictions[0].timing
        self._batch_size.observe(timing.batch_size)
        self._inference.observe(timing.inference / 1000)
        for prediction in predictions:
            timing = prediction.timing
            self._decode.observe(timing.decode / 1000)
            self._queue.observe(timing.queue / 1000)
            self._total.observe(timing.total / 1000)
            self._predictions.labels(prediction.labels[prediction.best]).inc()
        if not stored:
            self._unstored.inc(len(predictions))

    def failed(self, code: str, count: int = 1) -> None:
        """Count requests that were answered with an error."""
        self._errors.labels(code).inc(count)

    def abandoned(self, count: int) -> None:
        """Count requests whose client left before they were looked at."""
        self._abandoned.inc(count)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
