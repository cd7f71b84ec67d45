"""Traces of requests for OpenTelemetry, made after the fact from the times that are measured anyway.

Off, and not even imported, unless the standard variables say where to send them (`OTEL_EXPORTER_OTLP_ENDPOINT`, or the
same with `TRACES_`); the others of OpenTelemetry work too, such as `OTEL_TRACES_SAMPLER`, `OTEL_TRACES_SAMPLER_ARG`
and `OTEL_SERVICE_NAME`. A trace holds ids, times and codes; nothing of the image and nothing of what was seen in it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from service.batching.predictor import Request
from service.errors import StartupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_FLUSH_S: Final = 3.0


def start_tracing(version: str) -> Tracing | None:
    """What the environment asks for: None for no traces. To be called in the process that serves, after any fork.

    Raises:
        StartupError: the library refuses one of its variables.
    """
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    if (
        os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
        or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp"
    ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "visionai"}
        provider = TracerProvider(
            resource=Resource.create({**named, "service.version": version}), shutdown_on_exit=False
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ImportError:
        log.warning("no traces are sent: OpenTelemetry is not installed (docs/operations.md)")
        return None
    except ValueError as exc:
        raise StartupError(f"a setting of OpenTelemetry (OTEL_…) is wrong: {exc}") from None
    return Tracing(provider)


class Tracing:
    """Turns answered requests into spans: one for the request, and in it one for each stage."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace

        self._provider = provider
        self._tracer = provider.get_tracer("visionai")
        self._trace = trace

    def answered(self, requests: Sequence[Request]) -> None:
        """Record the requests of one batch, whose replies have just been sent."""
        now, now_ns = time.perf_counter(), time.time_ns()

        def wall(moment: float) -> int:
            """Nanoseconds since 1970 of a time by `time.perf_counter`."""
            return now_ns - round((now - moment) * 1e9)

        for request in requests:
            span = self._tracer.start_span(
                "predict", kind=self._trace.SpanKind.SERVER, start_time=wall(request.received)
            )
            if span.is_recording():
                if request.id is not None:
                    span.set_attribute("visionai.request_id", str(request.id))
                self._stages(span, request, wall, now)
                if request.error is not None:
                    span.set_attribute("error.type", request.error)
                    span.set_status(self._trace.StatusCode.ERROR, request.error)
            span.end(now_ns)

    def _stages(self, span: Span, request: Request, wall: Callable[[float], int], now: float) -> None:
        timing = request.timing
        if timing is None:
            return
        span.set_attribute("visionai.batch_size", timing.batch_size)
        scored = request.received + timing.total / 1000
        context = self._trace.set_span_in_context(span)
        for name, begun, ended in (
            ("queue", request.received, request.started),
            ("decode", request.started, request.started + timing.decode / 1000),
            ("inference", scored - timing.inference / 1000, scored),
            ("store", scored, request.recorded),
            ("reply", request.recorded, now),
        ):
            stage = self._tracer.start_span(name, context, start_time=wall(begun))
            stage.end(wall(ended))

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        # In a thread that may be left behind: the library waits longer for a collector that does not answer.
        flush = threading.Thread(target=self._provider.shutdown, daemon=True)
        flush.start()
        flush.join(_FLUSH_S)
