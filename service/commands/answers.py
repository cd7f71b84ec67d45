"""Answers to the queries that are answered at once, from what a worker knows: emotions, models, health."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from service import __version__
from service.canary import Version, store_status
from service.emotions import describe
from service.errors import as_utf8
from service.processes.cells import Gauge
from service.protocol import replies
from service.protocol.requests import Query
from service.settings import Settings
from service.telemetry.metrics import Metrics

SERVICE_NAME = "VisionAI"


class Answers:
    """One worker's.

    Args:
        settings: what the worker was started with.
        versions: the models that it serves, the active one first.
        metrics: of all workers, for health.
        refresh: brings this worker's share of the gauges up to date.
        not_ready: why the worker cannot predict; None when it can.
    """

    def __init__(
        self,
        settings: Settings,
        versions: Sequence[Version],
        metrics: Metrics,
        refresh: Callable[[], None],
        not_ready: Callable[[], str | None],
    ) -> None:
        self._settings = settings
        self._versions = versions
        self._metrics = metrics
        self._refresh = refresh
        self._not_ready = not_ready
        self._emotions = describe(versions[0].engine.card.labels, settings.emotions_language)

    def answer(self, version: Version, query: Query, in_detail: bool) -> bytes:
        """The reply to a client that is served by this version.

        What is wrong is told `in_detail` alone: the words are a database's or an operating system's, with its hosts,
        users and files.
        """
        body: dict[str, Any]
        match query.command:
            case "emotions":
                body = {"type": "emotions", "emotions": self._emotions}
            case "model_info":
                body = {"type": "model_info", "info": self._model_info(version)}
            case "models":
                body = {"type": "models", "models": [_described(each) for each in self._versions]}
            case "ping":
                body = {"type": "pong", "timestamp": replies.naive_utc(datetime.now(UTC))}
            case _:
                body = self._health(in_detail)
        return replies.success(body, query.id)

    def _health(self, in_detail: bool) -> dict[str, Any]:
        """Over all workers; of the store's errors this worker's in detail, and where only others have one, which.

        `reload_error` says why the last reload left the old model serving, and is there only then.
        """
        self._refresh()
        metrics = self._metrics
        store = store_status(self._versions)
        failing = [
            part
            for part, gauge in (("journal", Gauge.JOURNAL_FAILING), ("database", Gauge.DATABASE_FAILING))
            if metrics.total(gauge)
        ]
        status = "degraded" if failing else "healthy"
        details: dict[str, Any] = {
            "pending": int(metrics.total(Gauge.STORE_PENDING)),
            "written": metrics.written,
        }
        if failing:
            details["failing"] = failing
        if failing and in_detail:
            details["error"] = (
                f"another worker cannot write to its {failing[0]}" if store.healthy else store.last_error
            )
        reply = {
            "type": "health",
            "status": status if self._not_ready() is None else "unhealthy",
            "service": f"{SERVICE_NAME} {__version__}",
            "timestamp": replies.naive_utc(datetime.now(UTC)),
            "clients_connected": int(metrics.total(Gauge.CONNECTIONS)),
            "store": details,
            "models": [_summary(each) for each in self._versions],
        }
        if in_detail and (reload_error := metrics.reloads.last_error) is not None:
            reply["reload_error"] = reload_error
        return reply

    def _model_info(self, version: Version) -> dict[str, Any]:
        card = version.engine.card
        shape = card.shape
        return {
            "status": "loaded",
            "model_path": as_utf8(str(card.path)),
            "input_shape": [None, shape.height, shape.width, shape.channels],
            "output_shape": [None, len(card.labels)],
            "num_classes": len(card.labels),
            "total_params": card.parameters,
            "emotion_classes": list(card.labels),
            "model_version_tag": card.version_tag,
            "input_color": shape.color,
            "precision": card.precision,
            "opset": card.opset,
            "provider": version.engine.provider,
            "source": card.source,
            "source_sha256": card.source_sha256,
            "workers": self._settings.workers,
            "executors": self._settings.executors,
            "max_batch": self._settings.max_batch,
        }


def _summary(version: Version) -> dict[str, Any]:
    return {
        "version_tag": version.engine.card.version_tag,
        "active": version.active,
        "share": round(version.share, 6),
    }


def _described(version: Version) -> dict[str, Any]:
    card = version.engine.card
    return {**_summary(version), "precision": card.precision, "labels": card.labels}
