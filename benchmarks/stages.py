"""CPU time of the hot path's stages, measured inside a running worker.

The functions that make up the path are wrapped. A wrapper adds the CPU time of the event loop's thread (from the
operating system, so that waiting and preemption do not count) between its entry and its exit to its stage, and takes
it off the stage that called it: each microsecond belongs to the innermost stage, and none is counted twice. What the
thread spends outside all of them is the event loop itself and the kernel's work on its sockets; what the process
spends in other threads is the store's writer.

A wrapper costs time of its own. It is measured on an empty function, and taken off by the number of calls.
"""

from __future__ import annotations

import importlib
import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

# Stage, module, and the function in it. Functions that call each other may be of one stage.
PATH: Final = (
    ("websocket", "service.network.messages", "MessageConnection.data_received"),
    ("connection", "service.network.connection", "Connection.message_received"),
    ("connection", "service.network.connection", "Connection.settle"),
    ("write", "service.network.connection", "Connection._write"),
    ("json", "service.protocol.requests", "parse_frame"),
    ("queue", "service.server", "Service._submit"),
    ("queue", "service.batching.executors", "InlineExecutor._work"),
    ("deliver", "service.server", "Service._deliver"),
    ("predictor", "service.batching.predictor", "Predictor.serve"),
    ("base64", "service.images.decode", "decode_base64"),
    ("decode", "service.images.decode", "ImageDecoder.decode_into"),
    ("run", "service.engine", "Engine.run"),
    ("persist", "service.store", "Store.record"),
    ("reply", "service.protocol.replies", "PredictionReplies.reply"),
    ("metrics", "service.telemetry.metrics", "Metrics.answered"),
)
_COUNTED: Final = "PredictionReplies.reply"

# Requests before the window begins (the first are slower), and between two looks at the clocks.
_WARM_UP: Final = 500
_WINDOW_STEP: Final = 200

# A window takes as many as its warm-up and its first step.
MINIMUM_REQUESTS: Final = _WARM_UP + _WINDOW_STEP

_CALIBRATION_CALLS: Final = 20_000


@dataclass(slots=True)
class _Moment:
    """All counters at one moment."""

    requests: int
    process: float
    thread: float
    kernel: float
    stages: dict[str, float]
    calls: dict[str, int]


class Stages:
    """Counts by stage, for one thread: the event loop's."""

    def __init__(self) -> None:
        self._seconds = {stage: 0.0 for stage, _, _ in PATH}
        self._calls = {name: 0 for _, _, name in PATH}
        # Time of the stages called from the one that runs now, to be taken off it.
        self._inner = 0.0
        self._first: _Moment | None = None
        self._last: _Moment | None = None
        self._overhead_inside = 0.0
        self._overhead = 0.0

    def install(self) -> None:
        """Wrap the path's functions. To be called in the worker, before it serves."""
        self._calibrate()
        for stage, module_name, qualified in PATH:
            owner: Any = importlib.import_module(module_name)
            *classes, name = qualified.split(".")
            for each in classes:
                owner = getattr(owner, each)
            setattr(owner, name, self._timed(getattr(owner, name), stage, qualified))

    def _timed(self, function: Callable[..., Any], stage: str, name: str) -> Callable[..., Any]:
        clock = time.thread_time
        seconds, calls = self._seconds, self._calls
        home = threading.get_ident()

        def timed(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != home:
                return function(*args, **kwargs)
            outer, self._inner = self._inner, 0.0
            begun = clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = clock() - begun
                seconds[stage] += took - self._inner
                calls[name] += 1
                self._inner = outer + took
                if name == _COUNTED:
                    self._look()

        return timed

    def _calibrate(self) -> None:
        """What a wrapper costs: in all, and between its two looks at the clock."""
        stage, _, name = PATH[0]

        def nothing() -> None:
            pass

        wrapped = self._timed(nothing, stage, name)
        begun = time.thread_time()
        for _ in range(_CALIBRATION_CALLS):
            wrapped()
        middle = time.thread_time()
        for _ in range(_CALIBRATION_CALLS):
            nothing()
        plain = time.thread_time() - middle
        self._overhead = (middle - begun - plain) / _CALIBRATION_CALLS
        self._overhead_inside = max(0.0, self._seconds[stage] - plain) / _CALIBRATION_CALLS
        self._seconds[stage], self._calls[name], self._inner = 0.0, 0, 0.0

    def _look(self) -> None:
        count = self._calls[_COUNTED]
        if count == _WARM_UP:
            self._first = self._moment()
        elif count > _WARM_UP and count % _WINDOW_STEP == 0:
            self._last = self._moment()

    def _moment(self) -> _Moment:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return _Moment(
            self._calls[_COUNTED],
            usage.ru_utime + usage.ru_stime,
            time.thread_time(),
            usage.ru_stime,
            dict(self._seconds),
            dict(self._calls),
        )

    def to_json(self) -> bytes:
        """Microseconds of CPU per request: by stage, in the loop outside of all stages, in other threads, in all.

        `kernel` is the part of `total` that was spent in the kernel. `overhead` has been taken off.
        """
        first, last = self._first, self._last
        if first is None or last is None:
            return orjson.dumps({"error": f"fewer than {MINIMUM_REQUESTS} requests were answered"})
        requests = last.requests - first.requests
        scale = 1e6 / requests
        stages = {stage: last.stages[stage] - first.stages[stage] for stage in self._seconds}
        in_stages = sum(stages.values())
        calls = 0
        outside = self._overhead - self._overhead_inside
        for stage, _, name in PATH:
            count = last.calls[name] - first.calls[name]
            calls += count
            stages[stage] -= count * self._overhead_inside
            # The rest of a wrapper's time lies in its caller.
            if (caller := _CALLERS.get(name)) is not None:
                stages[caller] -= count * outside
        top_level = sum(last.calls[name] - first.calls[name] for _, _, name in PATH if name not in _CALLERS)
        thread, process = last.thread - first.thread, last.process - first.process
        overhead = calls * self._overhead
        return orjson.dumps(
            {
                "requests": requests,
                "stages": {stage: seconds * scale for stage, seconds in stages.items()},
                "loop": (thread - in_stages - top_level * outside) * scale,
                "writer": (process - thread) * scale,
                "total": (process - overhead) * scale,
                "kernel": (last.kernel - first.kernel) * scale,
                "overhead": overhead * scale,
            }
        )


# Who calls a function on the path; those that the event loop calls are missing.
_CALLERS: Final = {
    "Connection.message_received": "websocket",
    "Connection.settle": "deliver",
    "Connection._write": "connection",
    "parse_frame": "connection",
    "Service._submit": "connection",
    "Service._deliver": "queue",
    "Predictor.serve": "queue",
    "decode_base64": "decode",
    "ImageDecoder.decode_into": "predictor",
    "Engine.run": "predictor",
    "Store.record": "predictor",
    "PredictionReplies.reply": "predictor",
    "Metrics.answered": "deliver",
}
