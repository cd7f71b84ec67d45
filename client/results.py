"""What the server answers, typed. Every result keeps the whole reply in `raw`, for fields newer than this client.

Servers of protocol 1 send fewer fields: what they leave out is empty or None here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from client.errors import ProtocolViolation

Reply = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Box:
    """Where a face is, in pixels of the sent image, which the server turns upright first."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Face:
    """One face of an image. Scores and probabilities are 0..1; `face_id` follows a face through a stream."""

    box: Box
    detection_score: float
    emotion_name: str
    confidence: float
    probabilities: Mapping[str, float]
    face_id: int | str | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds that the server spent on a request, network not included.

    `batch_size` is the number of images in the run of the model that answered it.
    """

    decode: float
    queue: float
    inference: float
    total: float
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The emotion in one image: that of its largest face.

    `confidence` and `probabilities` are 0..1. `timestamp` is aware; UTC where the server sends no offset.
    `face_detected` is False where the whole image was scored for want of a face, and None where the server
    does not say.
    """

    emotion_name: str
    confidence: float
    model_version_tag: str
    processing_time_ms: float
    timestamp: datetime
    probabilities: Mapping[str, float] = field(default_factory=dict)
    faces: tuple[Face, ...] = ()
    face_detected: bool | None = None
    prediction_id: UUID | None = None
    timing: Timing | None = None
    raw: Reply = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Emotion:
    """One emotion that the model tells apart."""

    id: int
    name: str
    description: str


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that is served. Shapes are as the server writes them; a None in one is the batch size."""

    status: str
    model_path: str
    input_shape: tuple[int | str | None, ...]
    output_shape: tuple[int | str | None, ...]
    num_classes: int
    total_params: int
    emotion_classes: tuple[str, ...]
    raw: Reply = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One of the model versions that the server serves, `share` (0 to 1) of its connections by it.

    `active` is the one that is not a canary.
    """

    version_tag: str
    active: bool
    share: float
    precision: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Health:
    """How the server is. Well is ``status == "healthy"``."""

    status: str
    service: str
    timestamp: datetime
    clients_connected: int
    raw: Reply = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class StoredPrediction:
    """One row of the history: one face. `prediction_id` is None for rows older than that column.

    The faces of one image share their `prediction_id`; `box` is None where the whole image was scored. `emotion_name`
    and `confidence` are None where another program left them out.
    """

    prediction_id: UUID | None
    timestamp: datetime
    emotion_name: str | None
    confidence: float | None
    model_version_tag: str | None
    processing_time_ms: float | None
    face_index: int = 0
    request_id: str | None = None
    box: Box | None = None
    raw: Reply = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class HistoryPage:
    """Stored predictions, latest first. `next` asks for the page after this one; None on the last.

    `pending` predictions were answered and are not yet stored, and so not told of.
    """

    predictions: tuple[StoredPrediction, ...]
    next: str | None
    pending: int = 0
    raw: Reply = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class EmotionCount:
    """How often an emotion was predicted, and with what mean confidence (0..1; None for a count of 0)."""

    count: int
    mean_confidence: float | None


@dataclass(frozen=True, slots=True)
class Stats:
    """Predictions of the last `window_s` seconds. `latency_ms` maps percentiles such as ``p99`` to milliseconds.

    `scope` says whose: ``user``, ``connection``, or ``anonymous`` for all clients without a user. `buckets` counts
    emotions in equal parts of the time, each of `bucket_s` seconds, the oldest first, from `since` on; empty unless
    they were asked for. `pending` predictions were answered and are not yet stored, and so not counted.
    """

    window_s: float
    count: int
    mean_confidence: float | None
    emotions: Mapping[str, EmotionCount]
    latency_ms: Mapping[str, float]
    scope: str | None = None
    buckets: tuple[Mapping[str, int], ...] = ()
    bucket_s: float | None = None
    since: datetime | None = None
    pending: int = 0
    raw: Reply = field(default_factory=dict, repr=False, compare=False)


def prediction(reply: Reply) -> Prediction:
    """Read a ``prediction`` reply.

    Raises:
        ProtocolViolation: a field of protocol 1 is missing, or a field has the wrong form.
    """
    with _Reading("prediction"):
        timing = reply.get("timing")
        identity = reply.get("prediction_id")
        return Prediction(
            emotion_name=str(reply["emotion_name"]),
            confidence=float(reply["confidence"]),
            model_version_tag=str(reply["model_version_tag"]),
            processing_time_ms=float(reply["processing_time_ms"]),
            timestamp=_moment(reply["timestamp"]),
            probabilities=_probabilities(reply.get("probabilities")),
            faces=tuple(_face(face) for face in reply.get("faces") or ()),
            face_detected=reply.get("face_detected"),
            prediction_id=UUID(identity) if identity is not None else None,
            timing=_timing(timing) if timing is not None else None,
            raw=reply,
        )


def emotions(reply: Reply) -> tuple[Emotion, ...]:
    """Read an ``emotions`` reply. Raises `ProtocolViolation` where it has the wrong form."""
    with _Reading("emotions"):
        return tuple(
            Emotion(int(entry["id"]), str(entry["name"]), str(entry["description"]))
            for entry in reply["emotions"]
        )


def model_info(reply: Reply) -> ModelInfo:
    """Read a ``model_info`` reply. Raises `ProtocolViolation` where it has the wrong form."""
    with _Reading("model_info"):
        info = reply["info"]
        return ModelInfo(
            status=str(info["status"]),
            model_path=str(info["model_path"]),
            input_shape=tuple(info["input_shape"]),
            output_shape=tuple(info["output_shape"]),
            num_classes=int(info["num_classes"]),
            total_params=int(info["total_params"]),
            emotion_classes=tuple(info["emotion_classes"]),
            raw=reply,
        )


def models(reply: Reply) -> tuple[ModelVersion, ...]:
    """Read a ``models`` reply. Raises `ProtocolViolation` where it has the wrong form."""
    with _Reading("models"):
        return tuple(
            ModelVersion(
                version_tag=str(entry["version_tag"]),
                active=bool(entry["active"]),
                # Servers without canaries tell of none.
                share=float(entry.get("share", 1.0)),
                precision=str(entry["precision"]),
                labels=tuple(str(label) for label in entry["labels"]),
            )
            for entry in reply["models"]
        )


def health(reply: Reply) -> Health:
    """Read a ``health`` reply. Raises `ProtocolViolation` where it has the wrong form."""
    with _Reading("health"):
        return Health(
            status=str(reply["status"]),
            service=str(reply["service"]),
            timestamp=_moment(reply["timestamp"]),
            clients_connected=int(reply["clients_connected"]),
            raw=reply,
        )


def configuration(reply: Reply) -> Mapping[str, Any]:
    """Read a ``configure`` reply: every option of the connection with its value."""
    with _Reading("configure"):
        return dict(reply["configuration"])


def history(reply: Reply) -> HistoryPage:
    """Read a ``history`` reply. Raises `ProtocolViolation` where it has the wrong form."""
    with _Reading("history"):
        return HistoryPage(
            predictions=tuple(_stored(row) for row in reply["predictions"]),
            next=reply.get("next"),
            pending=int(reply.get("pending", 0)),
            raw=reply,
        )


def stats(reply: Reply) -> Stats:
    """Read a ``stats`` reply. Raises `ProtocolViolation` where it has the wrong form."""
    with _Reading("stats"):
        since = reply.get("since")
        return Stats(
            window_s=float(reply["window_s"]),
            count=int(reply["count"]),
            mean_confidence=reply["mean_confidence"],
            emotions={
                str(name): EmotionCount(int(entry["count"]), entry["mean_confidence"])
                for name, entry in reply["emotions"].items()
            },
            latency_ms={
                str(name): float(value) for name, value in reply["latency_ms"].items() if value is not None
            },
            scope=reply.get("scope"),
            buckets=tuple(
                {str(name): int(count) for name, count in bucket.items()}
                for bucket in reply.get("buckets") or ()
            ),
            bucket_s=reply.get("bucket_s"),
            since=_moment(since) if since is not None else None,
            pending=int(reply.get("pending", 0)),
            raw=reply,
        )


class _Reading:
    """Turns the errors of reading a reply of the wrong form into one `ProtocolViolation`."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, KeyError):
            raise ProtocolViolation(f"the server's {self._kind} reply lacks {error}") from error
        if isinstance(error, TypeError | ValueError | AttributeError):
            raise ProtocolViolation(f"the server's {self._kind} reply has the wrong form: {error}") from error


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _probabilities(value: Reply | None) -> Mapping[str, float]:
    return {str(name): float(share) for name, share in (value or {}).items()}


def _timing(value: Reply) -> Timing:
    return Timing(
        decode=float(value["decode"]),
        queue=float(value["queue"]),
        inference=float(value["inference"]),
        total=float(value["total"]),
        batch_size=value.get("batch_size"),
    )


def _stored(row: Reply) -> StoredPrediction:
    identity = row.get("prediction_id")
    box = row.get("box")
    name, confidence = row["emotion_name"], row["confidence"]
    return StoredPrediction(
        prediction_id=UUID(identity) if identity is not None else None,
        timestamp=_moment(row["timestamp"]),
        emotion_name=str(name) if name is not None else None,
        confidence=float(confidence) if confidence is not None else None,
        model_version_tag=row.get("model_version_tag"),
        processing_time_ms=row.get("processing_time_ms"),
        face_index=int(row.get("face_index", 0)),
        request_id=row.get("request_id"),
        box=_box(box) if box is not None else None,
        raw=row,
    )


def _box(value: Sequence[float]) -> Box:
    x, y, width, height = value
    return Box(x, y, width, height)


def _face(value: Reply) -> Face:
    return Face(
        box=_box(value["box"]),
        detection_score=float(value["detection_score"]),
        emotion_name=str(value["emotion_name"]),
        confidence=float(value["confidence"]),
        probabilities=_probabilities(value.get("probabilities")),
        face_id=value.get("face_id"),
    )
