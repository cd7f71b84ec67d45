"""What a server's Prometheus metrics say of the time between two readings. No I/O here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reading:
    """All samples of one exposition, by name and labels."""

    samples: Mapping[tuple[str, Labels], float]

    @classmethod
    def parse(cls, text: str) -> Reading:
        """Read Prometheus' text format. Raises ValueError where it is something else."""
        # Only here: nothing else of the client needs the library.
        from prometheus_client.parser import text_string_to_metric_families

        samples: dict[tuple[str, Labels], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name, frozenset(sample.labels.items())] = sample.value
        return cls(samples)

    def gauge(self, name: str) -> float | None:
        """The value of a metric without labels; None where the server has none of that name."""
        return self.samples.get((name, frozenset()))

    def labelled(self, name: str, label: str) -> dict[str, float]:
        """The values of a metric by one of its labels."""
        return {
            dict(labels)[label]: value
            for (sample, labels), value in self.samples.items()
            if sample == name and label in dict(labels)
        }

    def buckets(self, name: str, labels: Iterable[tuple[str, str]] = ()) -> list[tuple[float, float]]:
        """A histogram's cumulative counts by upper bound, ascending; the last bound is infinity."""
        wanted = frozenset(labels)
        found = []
        for (sample, its_labels), value in self.samples.items():
            if sample == f"{name}_bucket" and wanted <= its_labels:
                found.append((float(dict(its_labels)["le"]), value))
        return sorted(found)


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened between two readings, `seconds` apart. None is what the server does not report."""

    seconds: float
    rate: float
    predictions: Mapping[str, float]
    errors: Mapping[str, float]
    stages: Mapping[str, Mapping[str, float]]
    """Milliseconds: stage to ``p50``, ``p99`` and so on. Stages without a request in the interval are left out."""
    batch_size: float | None
    clients: float | None
    queue_depth: float | None
    store_pending: float | None
    memory_bytes: float | None
    cpu_share: float | None
    """CPU seconds per second: 2.0 is two cores."""


# The service's name first, then the one that Prometheus' own client library gives to the same thing.
_MEMORY = ("visionai_resident_memory_bytes", "process_resident_memory_bytes")
_CPU = ("visionai_cpu_seconds_total", "process_cpu_seconds_total")
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
STAGES = ("decode", "queue", "inference", "total", "store", "reply")


def between(before: Reading, after: Reading, seconds: float) -> Interval:
    """Compare two readings. A counter that went back (the server restarted) counts from zero."""
    predictions = _growth(before, after, "visionai_predictions_total", "emotion")
    stages = {}
    for stage in STAGES:
        name, labels = "visionai_stage_duration_seconds", [("stage", stage)]
        buckets = _bucket_growth(before.buckets(name, labels), after.buckets(name, labels))
        if buckets and buckets[-1][1] > 0:
            stages[stage] = {
                quantile: histogram_quantile(share, buckets) * 1000 for quantile, share in _QUANTILES.items()
            }
    runs = _grown(before.gauge("visionai_batch_size_count"), after.gauge("visionai_batch_size_count"))
    images = _grown(before.gauge("visionai_batch_size_sum"), after.gauge("visionai_batch_size_sum"))
    cpu = _grown(_first(before, _CPU), _first(after, _CPU))
    return Interval(
        seconds=seconds,
        rate=sum(predictions.values()) / seconds,
        predictions=predictions,
        errors=_growth(before, after, "visionai_errors_total", "code"),
        stages=stages,
        batch_size=images / runs if runs and images is not None else None,
        clients=after.gauge("visionai_connections"),
        queue_depth=after.gauge("visionai_queue_depth"),
        store_pending=after.gauge("visionai_store_pending"),
        memory_bytes=_first(after, _MEMORY),
        cpu_share=cpu / seconds if cpu is not None else None,
    )


def histogram_quantile(share: float, buckets: list[tuple[float, float]]) -> float:
    """The quantile `share` (0..1) of cumulative `buckets`, which hold at least one observation.

    Linear within a bucket, as Prometheus' ``histogram_quantile``; what lies in the last, open bucket counts as
    its lower bound.
    """
    rank = share * buckets[-1][1]
    for (lower, below), (upper, count) in pairwise([(0.0, 0.0), *buckets]):
        if count >= rank and count > below:
            return lower if math.isinf(upper) else lower + (upper - lower) * (rank - below) / (count - below)
    raise ValueError("the histogram is empty")


def _growth(before: Reading, after: Reading, name: str, label: str) -> dict[str, float]:
    """How much each labelled counter grew; those that did not are left out."""
    old = before.labelled(name, label)
    grown = {
        value: _grown(old.get(value, 0.0), now) or 0.0 for value, now in after.labelled(name, label).items()
    }
    return {value: count for value, count in grown.items() if count > 0}


def _bucket_growth(
    before: list[tuple[float, float]], after: list[tuple[float, float]]
) -> list[tuple[float, float]]:
    old = dict(before)
    restarted = any(count < old.get(bound, 0.0) for bound, count in after)
    return [(bound, count if restarted else count - old.get(bound, 0.0)) for bound, count in after]


def _grown(before: float | None, after: float | None) -> float | None:
    if after is None:
        return None
    return after - before if before is not None and before <= after else after


def _first(reading: Reading, names: Iterable[str]) -> float | None:
    return next((value for name in names if (value := reading.gauge(name)) is not None), None)
