"""Following faces from frame to frame of a camera's stream, and smoothing what the model says of each over time.

A face is taken for one of the last frames' by how much its box overlaps theirs and how far it has moved: between two
frames a head moves by less than its own size. Pairs are made greedily, the best first. Nothing is remembered of what
a face looks like: one that leaves the picture and comes back later is a new one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# x, y, width and height in pixels; never without a size, see `decode.to_faces`.
Box = tuple[int, int, int, int]

#: Seconds for which a face that is not seen is still expected where it was: a blink of the detector, a hand before it.
FORGET_S: Final = 1.0

# Overlap (intersection over union) from which two boxes are one face however they lie, and, below it, how many of its
# sides a face may have moved and by what factor it may have grown or shrunk.
_OVERLAP: Final = 0.3
_REACH: Final = 0.8
_GROWTH: Final = 1.6

# Faces that are remembered at most. Twice what a frame may have; more would only be work.
_REMEMBERED: Final = 128


@dataclass(slots=True, eq=False)
class _Track:
    """One face that is followed; None for a whole image that was scored for want of a face."""

    id: int | None
    box: Box | None
    seen: float
    scores: list[float]


class FaceTracker:
    """Follows the faces of one stream. Threads may share it."""

    def __init__(self) -> None:
        self._tracks: list[_Track] = []
        self._last_id = 0
        # Two frames of a stream may be in two executors, when the first one takes long.
        self._lock = threading.Lock()

    def follow(
        self,
        boxes: Sequence[Box | None],
        scores: Sequence[Sequence[float]],
        moment: float,
        smoothing: float | None = None,
    ) -> list[tuple[int | None, list[float]]]:
        """The id of each face of a frame, from 1 up and None for a whole image, and its scores, smoothed.

        Args:
            boxes: where the faces are; None for a whole image.
            scores: what the model says of each.
            moment: when the frame came in, in seconds of any clock.
            smoothing: time constant in seconds: what the model says weighs ``1 - exp(-t / smoothing)`` against what
                it said before, t after the face was last seen, at whatever rate frames come. None: not smoothed.
        """
        with self._lock:
            self._tracks = [track for track in self._tracks if moment - track.seen <= FORGET_S]
            tracks = _paired(boxes, self._tracks)
            followed = []
            for box, new, found in zip(boxes, scores, tracks, strict=True):
                track = found or self._begin(box, new, moment)
                if found is not None:
                    track.scores = _smoothed(track.scores, new, moment - track.seen, smoothing)
                    if moment >= track.seen:  # one that took longer moves nothing back
                        track.box, track.seen = box, moment
                followed.append((track.id, track.scores))
            self._tracks.sort(key=lambda track: track.seen)
            del self._tracks[:-_REMEMBERED]
            return followed

    def _begin(self, box: Box | None, scores: Sequence[float], moment: float) -> _Track:
        if box is not None:
            self._last_id += 1
        track = _Track(None if box is None else self._last_id, box, moment, list(scores))
        self._tracks.append(track)
        return track


def _paired(boxes: Sequence[Box | None], tracks: Sequence[_Track]) -> list[_Track | None]:
    """The track that each box continues, each track at most once."""
    pairs = sorted(
        (
            (affinity, index, number)
            for index, box in enumerate(boxes)
            for number, track in enumerate(tracks)
            if (affinity := _affinity(box, track.box)) is not None
        ),
        reverse=True,
    )
    found: list[_Track | None] = [None] * len(boxes)
    taken: set[int] = set()
    for _, index, number in pairs:
        if found[index] is None and number not in taken:
            found[index] = tracks[number]
            taken.add(number)
    return found


def _affinity(one: Box | None, other: Box | None) -> float | None:
    """How well two boxes fit together as one face; None if they cannot be."""
    if one is None or other is None:
        return 1.0 if one is other else None
    (x, y, w, h), (u, v, s, t) = one, other
    side, other_side = math.sqrt(w * h), math.sqrt(s * t)
    inner = max(0, min(x + w, u + s) - max(x, u)) * max(0, min(y + h, v + t) - max(y, v))
    overlap = inner / (w * h + s * t - inner)
    moved = math.hypot(x + w / 2 - u - s / 2, y + h / 2 - v - t / 2) * 2 / (side + other_side)
    growth = max(side, other_side) / min(side, other_side)
    if overlap < _OVERLAP and (moved > _REACH or growth > _GROWTH):
        return None
    return overlap - moved


def _smoothed(
    old: Sequence[float], new: Sequence[float], passed: float, smoothing: float | None
) -> list[float]:
    if not smoothing:
        return list(new)
    weight = 1 - math.exp(-max(passed, 0.0) / smoothing)
    return [round(before + weight * (now - before), 6) for before, now in zip(old, new, strict=True)]
