"""The limit: decode and run in a bare loop on all cores, without network, protocol or storage.

This is what the machine can do; a server is measured against it. The loop uses the service's own decoder and
engine, so that both do the same work on an image.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.workload import face_jpeg
from service.engine import Engine
from service.images.decode import ImageDecoder

Workers = Literal["threads", "processes"]


@dataclass(frozen=True, slots=True)
class LimitResult:
    """Images per second over all workers, and CPU seconds per image."""

    workers: Workers
    count: int
    size: str
    batch: int
    throughput: float
    cpu_per_image_us: float


def measure_limit(
    model: Path, size: str, batch: int, workers: Workers, count: int, seconds: float
) -> LimitResult:
    """Run the bare loop for some seconds in `count` threads, or in `count` processes."""
    if workers == "threads":
        engine = Engine(model)
        cpu = time.process_time()
        done: list[int] = []
        threads = [
            threading.Thread(target=lambda: done.append(_loop(engine, size, batch, seconds)))
            for _ in range(count)
        ]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - begun
        images, cpu = sum(done), time.process_time() - cpu
        return LimitResult(workers, count, size, batch, images / elapsed, cpu / images * 1e6)
    context = multiprocessing.get_context("spawn")
    with context.Pool(count, _load_engine, (str(model),)) as pool:
        # One task each: a worker is busy for `seconds`, so none can take two.
        outcomes = pool.starmap(_loop_in_process, [(size, batch, seconds)] * count, chunksize=1)
    images = sum(outcome[0] for outcome in outcomes)
    return LimitResult(
        workers,
        count,
        size,
        batch,
        sum(outcome[0] / outcome[1] for outcome in outcomes),
        sum(outcome[2] for outcome in outcomes) / images * 1e6,
    )


_engine: Engine


def _load_engine(model: str) -> None:
    global _engine  # a pool's workers have no other place for what their initializer makes
    _engine = Engine(Path(model))


def _loop_in_process(size: str, batch: int, seconds: float) -> tuple[int, float, float]:
    cpu, begun = time.process_time(), time.perf_counter()
    images = _loop(_engine, size, batch, seconds)
    return images, time.perf_counter() - begun, time.process_time() - cpu


def _loop(engine: Engine, size: str, batch: int, seconds: float) -> int:
    """Decode and run batches until the time is up. Returns the number of images."""
    shape = engine.card.shape
    decoder = ImageDecoder(shape, max_pixels=10**8)
    image = face_jpeg(size)
    inputs = np.empty((batch, shape.height, shape.width, shape.channels), np.uint8)
    images = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for index in range(batch):
            decoder.decode_into(image, inputs[index])
        engine.run(inputs)
        images += batch
    return images
