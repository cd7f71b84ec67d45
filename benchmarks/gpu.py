"""What a GPU makes of batches, against one core of the CPU, and of the service as a whole."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.load import LoadPlan, LoadResult, answered, load
from benchmarks.target import started_service
from benchmarks.workload import Workload
from service.engine import Engine
from service.settings import Provider

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_RUNS = 50


@dataclass(frozen=True, slots=True)
class BatchPoint:
    """One size of batch on one provider: the median run in ms, and images per second at that."""

    provider: Provider
    batch: int
    milliseconds: float

    @property
    def images_per_s(self) -> float:
        """As one run after the other makes them."""
        return self.batch / self.milliseconds * 1000


def batch_curve(model: Path, provider: Provider) -> list[BatchPoint]:
    """Time batches of random images.

    Raises:
        StartupError: the provider cannot be used here; says why.
    """
    engine = Engine(model, provider)
    shape = engine.card.shape
    random = np.random.default_rng(0)
    points = []
    for batch in _BATCHES:
        images = random.integers(0, 256, (batch, shape.height, shape.width, shape.channels), np.uint8)
        engine.run(images)  # the first of a size allocates, and on a GPU chooses its kernels
        times = []
        for _ in range(_RUNS):
            begun = time.perf_counter()
            engine.run(images)
            times.append(time.perf_counter() - begun)
        points.append(BatchPoint(provider, batch, median(times) * 1000))
    return points


def service_on(model: Path, provider: Provider, workload: Workload, plan: LoadPlan) -> LoadResult:
    """Load the service on this provider, with the layout that it chooses for it.

    Raises:
        Unanswered: the load had no right answer.
    """
    environment = {"PROVIDER": provider, "MAX_BATCH": "64" if provider == "cuda" else "8"}
    with started_service(model, environment) as target:
        return answered(load(target, workload, plan))
