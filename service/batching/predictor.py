"""A micro-batch from images to replies: decode, run the model, store, answer. Blocks; knows no threads or loops.

Guarantees:

* Every request given to `serve` has its reply when `serve` returns, whatever happened on the way.
* An image that cannot be decoded fails its own request only; so does one that the search for faces or the model raises
  on, or that the model answers with no numbers.
* A prediction is handed to the store before its reply exists.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.batching.scheduler import NORMAL
from service.engine import Engine
from service.errors import Internal, NoFace, RequestError
from service.faces import Face, FaceDetector, crop_face
from service.faces.tracking import FaceTracker
from service.images import ImageFile
from service.images.decode import ImageDecoder, Photo
from service.protocol.replies import PredictionReplies, ScoredFace, Timing, error_reply
from service.protocol.requests import RequestId
from service.settings import Detect
from service.store.prediction_ids import PredictionIds
from service.store.records import PredictionRecord

log = logging.getLogger(__name__)


_FAULT = "the prediction failed; the fault is ours"


class Client(Hashable, Protocol):
    """Who a request is from, as far as predicting is concerned. Hashable: turns are taken by client."""

    address: str | None
    prediction_ids: PredictionIds


class Batches(Protocol):
    """What executors work with: `Predictor`, or several of them, see `canary`. Each caller brings its own buffer."""

    def make_buffer(self, max_batch: int) -> npt.NDArray[np.uint8]:
        """What `serve` needs for batches of up to `max_batch` faces at a time."""

    def serve(self, requests: list[Request], buffer: npt.NDArray[np.uint8]) -> None:
        """Answer every request of a batch. Does not raise."""


class Recorder(Protocol):
    """Where predictions are stored."""

    def record(self, records: Sequence[PredictionRecord]) -> bool:
        """Take records without waiting for a database. False: they could not be taken, and are not stored."""


@dataclass(slots=True, eq=False)
class Request:
    """One prediction on its way through the service. Times are `time.perf_counter` seconds.

    `in_order` is false if its reply may overtake others of its client. `user` is who it is stored for; None for
    anybody. A `tracker` follows its faces through a stream, and smooths their scores over `smoothing` seconds.
    `version` is the number of the model that answers it, see `canary`.

    Once answered, `reply` is the frame for the client, and either `emotion` and `timing` are set, or `error` is.
    `decoded` is when its image had been looked at, for faces too; 0 if that failed. `model_seconds` is its faces' share
    of the model's runs.
    """

    client: Client
    id: RequestId
    image: str | ImageFile
    received: float
    deadline: float | None = None
    priority: int = NORMAL
    detect: Detect = "never"
    max_faces: int = 1
    in_order: bool = True
    user: str | None = None
    tracker: FaceTracker | None = None
    smoothing: float | None = None
    version: int = 0
    size: int = field(init=False)
    cost: float = 0.0
    reply: bytes | None = None
    emotion: str | None = None
    timing: Timing | None = None
    model_seconds: float = 0.0
    stored: bool = False
    error: str | None = None
    started: float = 0.0
    decoded: float = 0.0
    recorded: float = 0.0

    def __post_init__(self) -> None:
        image = self.image
        # Of text that is no ASCII, and so no base64, a letter may take four bytes.
        self.size = len(image) if not isinstance(image, str) or image.isascii() else sys.getsizeof(image)

    def fail(self, error: RequestError) -> None:
        """Answer with an error. The first answer stands. The image is let go: its turn to be sent may be far away."""
        self.image = b""
        if self.reply is None:
            # What had been found out before the fault is no answer, and not counted as one.
            self.timing = self.emotion = None
            self.error = error.code
            self.reply = error_reply(error, self.id)


# An image no larger than this in either direction is taken for a face that was cut out already: "auto" does not look
# for one in it. The detector's own input is 128 pixels a side; clients that cut out faces send 48 to 100.
FACE_CROP_SIDE = 100


class Predictor:
    """Answers batches with one engine. Threads may share it if each brings a buffer of its own.

    Args:
        engine: the emotion network.
        decoder: decodes to the engine's input.
        store: takes the predictions.
        detector: finds faces.
    """

    def __init__(
        self, engine: Engine, decoder: ImageDecoder, store: Recorder, detector: FaceDetector
    ) -> None:
        self._engine = engine
        self._decoder = decoder
        self._store = store
        self._detector = detector

    def make_buffer(self, max_batch: int) -> npt.NDArray[np.uint8]:
        """A model input for batches of up to `max_batch` faces: uint8 [max_batch, height, width, channels]."""
        return np.empty((max_batch, *self.input_shape), np.uint8)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one face as the model takes it."""
        shape = self._decoder.shape
        return shape.height, shape.width, shape.channels

    def serve(self, requests: list[Request], buffer: npt.NDArray[np.uint8]) -> None:
        """Answer every request of a batch. Does not raise."""
        try:
            self._predict(requests, buffer)
        except Exception:
            ids = [request.id for request in requests if request.id is not None]
            log.exception("a batch of %d failed; requests %s", len(requests), ids, extra={"request_ids": ids})
        for request in requests:
            if request.reply is None:
                request.fail(Internal(_FAULT))

    def _predict(self, requests: list[Request], buffer: npt.NDArray[np.uint8]) -> None:
        scoring = _Scoring(self._engine, buffer)
        decoded: list[Request] = []
        clock = time.perf_counter
        for request in requests:
            request.started = clock()
            in_model = scoring.seconds
            try:
                self._add_faces(request, scoring)
            except RequestError as exc:
                request.fail(exc)
                if not isinstance(exc, NoFace):  # that one was looked at to the end
                    continue
            except Exception:  # whatever it is, its batch-mates have no part in it
                ids = [] if request.id is None else [request.id]
                log.exception(
                    "an image of %d bytes failed; requests %s", request.size, ids, extra={"request_ids": ids}
                )
                request.fail(Internal(_FAULT))
                continue
            finally:
                request.image = b""  # an image may be megabytes, and the request lives on until it is sent
            # A buffer that filled up meanwhile was run meanwhile: that is no decoding.
            request.decoded = clock() - (scoring.seconds - in_model)
            if request.reply is None:
                decoded.append(request)
        scoring.run()
        self._complete([request for request in decoded if scoring.is_complete(request)], scoring)

    def _add_faces(self, request: Request, scoring: _Scoring) -> None:
        """Decode a request's image, and add its faces, or all of it, to what is to be scored."""
        decoder = self._decoder
        if request.detect == "never":
            decoder.decode_into(request.image, scoring.slot())
            scoring.add(request, None)
            return
        photo = decoder.decode_photo(request.image)
        is_crop = request.detect == "auto" and max(photo.width, photo.height) <= FACE_CROP_SIDE
        faces = [] if is_crop else self._detector.detect(photo.pixels, request.max_faces)
        shape = decoder.shape
        for face in faces:
            slot = scoring.slot()
            slot[:] = crop_face(photo.pixels, face, shape.height, shape.width).reshape(slot.shape)
            scoring.add(request, _scaled(face, photo))
        if not faces:
            if request.detect == "always":
                raise NoFace("no face was found in the image")
            decoder.fit(photo.pixels, scoring.slot())
            scoring.add(request, None)

    def _complete(self, requests: list[Request], scoring: _Scoring) -> None:
        """Store the predictions of a batch, then make their replies."""
        if not requests:
            return
        now = time.perf_counter()
        labels = self._engine.card.labels
        moment = datetime.now(UTC)
        seconds_per_face = scoring.seconds / scoring.total
        answers: list[tuple[str, list[ScoredFace]]] = []
        records: list[PredictionRecord] = []
        for request in requests:
            faces = scoring.faces[request]
            total = (now - request.received) * 1000
            request.timing = Timing(
                decode=(request.decoded - request.started) * 1000,
                queue=(request.started - request.received) * 1000,
                inference=scoring.seconds * 1000,
                total=total,
                batch_size=scoring.size,
            )
            request.model_seconds = seconds_per_face * len(faces)
            prediction_id = request.client.prediction_ids.next()
            answers.append((prediction_id, faces))
            for index, face in enumerate(faces):
                confidence = max(face.probabilities)
                emotion = labels[face.probabilities.index(confidence)]
                if index == 0:
                    request.emotion = emotion
                records.append(
                    {
                        "prediction_id": prediction_id,
                        "emotion": emotion,
                        "confidence": confidence,
                        "probabilities": face.probabilities,
                        "processing_ms": total,
                        "timestamp": moment,
                        "source_ip": request.client.address,
                        "request_id": None if request.id is None else str(request.id),
                        "user": request.user,
                        "face_index": index,
                        "face_box": face.box,
                        "detection_score": face.detection_score,
                    }
                )
        stored = self._store.record(records)
        recorded = time.perf_counter()
        replies = PredictionReplies(labels, self._engine.card.version_tag, moment)
        for request, (prediction_id, faces) in zip(requests, answers, strict=True):
            assert request.timing is not None
            request.stored = stored
            request.recorded = recorded
            if request.tracker is not None:
                _follow(request, request.tracker, faces)
            request.reply = replies.reply(
                request.id, prediction_id if stored else None, faces, request.timing
            )


def _follow(request: Request, tracker: FaceTracker, faces: list[ScoredFace]) -> None:
    """Tell who is who in a stream. What is stored stays what the model said of this frame by itself."""
    followed = tracker.follow(
        [face.box for face in faces],
        [face.probabilities for face in faces],
        request.received,
        request.smoothing,
    )
    for face, (face_id, probabilities) in zip(faces, followed, strict=True):
        face.face_id, face.probabilities = face_id, probabilities


def _scaled(face: Face, photo: Photo) -> Face:
    """A face found in a photo's pixels, in pixels of the sent image."""
    rows, columns = photo.pixels.shape[:2]
    x, y, w, h = face.box
    sx, sy = photo.width / columns, photo.height / rows
    # Corners are rounded, not sizes: those that lie at the image's edge stay there.
    left, top = round(x * sx), round(y * sy)
    return replace(face, box=(left, top, round((x + w) * sx) - left, round((y + h) * sy) - top))


class _Scoring:
    """The faces of one batch of requests on their way through the model, as many at a time as the buffer holds.

    `seconds` were spent in the model, on `total` faces, `size` of them at most at once.
    """

    def __init__(self, engine: Engine, buffer: npt.NDArray[np.uint8]) -> None:
        self._engine = engine
        self._buffer = buffer
        self._waiting: list[tuple[Request, Face | None]] = []
        self._failed: set[Request] = set()
        self.faces: dict[Request, list[ScoredFace]] = {}
        self.seconds = 0.0
        self.size = 0
        self.total = 0

    def slot(self) -> npt.NDArray[np.uint8]:
        """Where the next face goes: uint8 [height, width, channels]."""
        if len(self._waiting) == len(self._buffer):
            self.run()
        slot: npt.NDArray[np.uint8] = self._buffer[len(self._waiting)]
        return slot

    def add(self, request: Request, face: Face | None) -> None:
        """What was written to the slot is this face of this request; None for its whole image."""
        self._waiting.append((request, face))

    def is_complete(self, request: Request) -> bool:
        """Whether the model scored every face of a request."""
        return request not in self._failed

    def run(self) -> None:
        """Score what waits. An input that the model fails on does not fail its batch-mates."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        self.size = max(self.size, len(waiting))
        self.total += len(waiting)
        begun = time.perf_counter()
        rows: list[list[float] | None]
        try:
            rows = _rounded(self._engine.run(self._buffer[: len(waiting)]))
        except Exception:  # ONNX Runtime's exceptions share no narrower base
            log.exception("the model failed on a batch of %d; its images are run one by one", len(waiting))
            rows = [self._run_singly(index) for index in range(len(waiting))]
        self.seconds += time.perf_counter() - begun
        for (request, face), row in zip(waiting, rows, strict=True):
            if row is None:
                self._failed.add(request)
                continue
            scored = ScoredFace(row)
            if face is not None:
                scored.box, scored.detection_score = face.box, round(face.score, 4)
            self.faces.setdefault(request, []).append(scored)

    def _run_singly(self, index: int) -> list[float] | None:
        try:
            return _rounded(self._engine.run(self._buffer[index : index + 1]))[0]
        except Exception:  # as above; the request is answered `internal`
            log.exception("the model failed on a single image")
            return None


def _rounded(probabilities: npt.NDArray[np.float32]) -> list[list[float] | None]:
    """Six decimals: more would only be noise in the JSON; the sum of a row stays within 1e-5 of 1.

    None for a row that is no answer: not all of it are numbers.
    """
    rows: list[list[float] | None] = probabilities.astype(np.float64).round(6).tolist()
    finite = np.isfinite(probabilities)
    if not finite.all():
        unanswered = np.flatnonzero(~finite.all(axis=1)).tolist()
        log.error("the model's answer to %d of %d images is no number", len(unanswered), len(rows))
        for index in unanswered:
            rows[index] = None
    return rows
