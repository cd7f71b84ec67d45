"""The limit: decode and run in a bare loop on all cores, without network, protocol or storage.

This is what the machine can do; a server is measured against it. The loop uses the service's own decoder, detector
and engine, so that both do the same work on an image.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from benchmarks.percentiles import Latency, latency
from benchmarks.quiet import busy_seconds
from benchmarks.workload import face_jpeg, faces_of
from service.engine import Engine
from service.errors import StartupError
from service.faces import FaceDetector, crop_face
from service.images.decode import ImageDecoder
from service.modelfile import resolve_detectors, resolve_model
from service.processes.apart import end_with_parent
from service.processes.signals import held_back
from service.settings import Detect, Provider

Workers = Literal["threads", "processes"]

# The service that is measured takes the setting from the same place.
PROVIDER: Provider = os.environ.get("PROVIDER", "cpu")  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class LimitResult:
    """Images per second over all workers, CPU microseconds per image, and cores that were busy with something else."""

    workers: Workers
    count: int
    size: str
    batch: int
    detect: Detect
    throughput: float
    cpu_per_image_us: float
    others_cores: float


class Job:
    """What is done to an image. As many threads as `callers` may share it, and none waits for another.

    With `detect` other than ``never`` the largest face is looked for first, as the service does by default.

    Raises:
        StartupError: the model, or the provider that is set, cannot be used.
    """

    def __init__(self, model: Path, callers: int = 1) -> None:
        if PROVIDER not in (providers := get_args(Provider)):
            raise StartupError(
                f"PROVIDER={PROVIDER}: the bare loop runs on one of {', '.join(providers)}"
                " (`python -m service tune` says which of them auto chooses)"
            )
        self.engine = Engine(resolve_model(model, "--model"), PROVIDER, callers=callers)
        self._decoder = ImageDecoder(self.engine.card.shape, max_pixels=10**8)
        self._detector = FaceDetector(*resolve_detectors(model))

    def run_for(self, size: str, batch: int, detect: Detect, seconds: float) -> tuple[list[float], float]:
        """Work on batches until the time is up. Returns the seconds of each batch, and of all together."""
        shape = self.engine.card.shape
        images = cycle([face_jpeg(size, face) for face in faces_of(size)])
        inputs = np.empty((batch, shape.height, shape.width, shape.channels), np.uint8)
        clock = time.perf_counter
        took = []
        begun = before = clock()
        while before - begun < seconds:
            for out, image in zip(inputs, images, strict=False):
                if detect == "never":
                    self._decoder.decode_into(image, out)
                else:
                    self._cut_face(image, out)
            self.engine.run(inputs)
            now = clock()
            took.append(now - before)
            before = now
        return took, before - begun

    def _cut_face(self, image: bytes, out: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        photo = self._decoder.decode_photo(image)
        faces = self._detector.detect(photo.pixels, 1)
        if faces:
            face = crop_face(photo.pixels, faces[0], out.shape[0], out.shape[1])
            out[:] = face.reshape(out.shape)
        else:
            self._decoder.fit(photo.pixels, out)


class LimitBench:
    """The bare loop in `count` threads and in `count` processes, which stay for any number of measurements."""

    def __init__(self, model: Path, count: int) -> None:
        self.count = count
        self._model = model
        self._job = Job(model, count)
        self._pool: Pool | None = None

    def measure(
        self, workers: Workers, size: str, batch: int = 1, detect: Detect = "never", seconds: float = 1.0
    ) -> LimitResult:
        """One measurement."""
        if workers == "processes" and self._pool is None:
            self._start_pool()
        measure = self._in_threads if workers == "threads" else self._in_processes
        busy, begun = busy_seconds(), time.perf_counter()
        throughput, cpu, images = measure(size, batch, detect, seconds)
        elapsed = time.perf_counter() - begun
        others = max(0.0, busy_seconds() - busy - cpu) / elapsed
        return LimitResult(workers, self.count, size, batch, detect, throughput, cpu / images * 1e6, others)

    def call(self, size: str, detect: Detect = "never", seconds: float = 1.0) -> Latency:
        """How long one image takes in one thread of this process, and nothing beside it."""
        return latency(self._job.run_for(size, 1, detect, seconds)[0])

    def _in_threads(self, size: str, batch: int, detect: Detect, seconds: float) -> tuple[float, float, int]:
        """Images per second, CPU seconds, images."""
        done: list[tuple[list[float], float]] = []
        threads = [
            threading.Thread(target=lambda: done.append(self._job.run_for(size, batch, detect, seconds)))
            for _ in range(self.count)
        ]
        cpu = time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cpu = time.process_time() - cpu
        images = sum(len(took) for took, _ in done) * batch
        return sum(len(took) * batch / elapsed for took, elapsed in done), cpu, images

    def _in_processes(
        self, size: str, batch: int, detect: Detect, seconds: float
    ) -> tuple[float, float, int]:
        assert self._pool is not None
        # One task each: the barrier holds every worker until all have one, so that none takes two.
        tasks = [(size, batch, detect, seconds)] * self.count
        outcomes = self._pool.starmap(_loop_in_process, tasks, chunksize=1)
        images = sum(outcome[0] for outcome in outcomes)
        return sum(o[0] / o[1] for o in outcomes), sum(o[2] for o in outcomes), images

    def _start_pool(self) -> None:
        context = multiprocessing.get_context("spawn")
        barrier = context.Barrier(self.count)
        # A terminal sends Ctrl-C to all of them; workers never see it. Those that end by themselves are
        # replaced, or leave a lock behind, for which `terminate` waits for ever.
        with held_back(signal.SIGINT):
            self._pool = context.Pool(self.count, _load_job, (str(self._model), barrier))
        # Until each has loaded its model, which would be taken for somebody else's work.
        self._pool.starmap(_loop_in_process, [("64x64", 1, "never", 0.0)] * self.count, chunksize=1)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()


@contextmanager
def limit_bench(model: Path, count: int) -> Iterator[LimitBench]:
    """A bench whose processes end with the context."""
    bench = LimitBench(model, count)
    try:
        yield bench
    finally:
        bench.close()


_job: Job
_barrier: threading.Barrier


def _load_job(model: str, barrier: threading.Barrier) -> None:
    if sys.platform != "win32":
        # What ends a group (`timeout`, a terminal that is closed) would end a worker that holds the queue's lock, for
        # which `terminate` waits for ever. It is for the parent to end the workers.
        os.setpgid(0, 0)
    # A parent that is killed ends nobody, and at the barrier a worker would wait for ever for one that is gone.
    threading.Thread(target=end_with_parent, daemon=True).start()
    global _job, _barrier  # a pool's workers have no other place for what their initializer makes
    _job, _barrier = Job(Path(model)), barrier


def _loop_in_process(size: str, batch: int, detect: Detect, seconds: float) -> tuple[int, float, float]:
    _barrier.wait()
    cpu = time.process_time()
    took, elapsed = _job.run_for(size, batch, detect, seconds)
    return len(took) * batch, elapsed, time.process_time() - cpu
