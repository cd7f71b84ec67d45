"""Measure how long models take, side by side, on this machine."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from conversion.images import Images
from conversion.sessions import open_session

BATCHES = (1, 2, 4, 8, 16, 32, 64)

# By precision, then by batch size: the median time of one batch, in milliseconds.
Latencies = dict[str, dict[int, float]]


def measure_latency(
    models: Mapping[str, bytes],
    images: Images,
    advance: Callable[[int], None],
    batches: Sequence[int] = BATCHES,
    seconds: float = 0.25,
) -> Latencies:
    """Return the median milliseconds of a batch for each model: one CPU thread, all optimisations.

    Each model gets about `seconds` per batch size. Models take turns batch by batch, so that a busy moment of
    the machine falls on all of them alike. `advance` is called with 1 after each batch size.
    """
    sessions = {name: open_session(model) for name, model in models.items()}
    medians: Latencies = {name: {} for name in models}
    for size in batches:
        batch = images.take(range(size), axis=0, mode="wrap")
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for session in sessions.values():
            session.run(None, {session.get_inputs()[0].name: batch})
        until = time.perf_counter() + seconds * len(sessions)
        while time.perf_counter() < until or len(next(iter(times.values()))) < 5:
            for name, session in sessions.items():
                feed = {session.get_inputs()[0].name: batch}
                start = time.perf_counter()
                session.run(None, feed)
                times[name].append((time.perf_counter() - start) * 1000)
        for name in sessions:
            medians[name][size] = statistics.median(times[name])
        advance(1)
    return medians
