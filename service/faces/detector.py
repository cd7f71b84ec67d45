"""The face detector: BlazeFace on the whole image, and on tiles of it where faces are small.

The short-range network sees faces that fill a good part of its 128x128 input: one look at the whole image finds a
selfie's face in a millisecond or two. In large images it then looks at overlapping tiles, which makes small faces
large. What was found there with little confidence is shown to a second network, the back-camera one, which does not
share the first one's mistakes; beside a face that the whole look found, more is asked of it. Where nothing was found,
the second network looks at the whole image, at twice the resolution.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from service.engine.onnx import metadata_of, open_session
from service.errors import StartupError
from service.faces.decode import (
    SAME_FACE,
    Face,
    Floats,
    anchors,
    decode_detections,
    suppress,
    to_faces,
    unletterbox,
)
from service.settings import SmallFaces

Pixels = npt.NDArray[np.uint8]

# Scores are in 0..1. Measured on group photos (docs/faces.md): what a whole look finds above 0.5 is a face; tiles
# show the network clothes and walls in close-up, of which some pass 0.7.
_WHOLE_SCORE = 0.5
_SECOND_WHOLE_SCORE = 0.6
_TILE_SCORE = 0.6
_SURE_SCORE = 0.8

# A doubtful face is shown to the second network at these multiples of its size; the mean score must reach the last.
_SECOND_LOOKS = (2.0, 3.0)
_SECOND_SCORE = 0.45

# Beside somebody near, whose clothes are close-ups, it must also be seen in its surroundings, as they are and mirrored.
# Measured (docs/faces.md): clothes get up to 0.65 here, faces of group photos 0.72 and more, but for a hidden one.
_WIDE_LOOKS = (4.0, 6.0)
_WIDE_SCORE = 0.68

# Tiles, in pixels of the image after it was shrunk to at most _LONGEST a side. A tile is a face's width and a half
# beyond its neighbour, so that a face cut by one is whole in the other.
_LONGEST = 1280
_TILE = 256
_STEP = 180

# Up to this size a face that matters fills enough of the whole look: webcam frames and selfies.
_AUTO_TILES_ABOVE = 800

_BATCH = 8


@dataclass(frozen=True, slots=True)
class _Look:
    """A square look at an image: where it is, and the region's side, in pixels of the image."""

    x: float
    y: float
    side: float


class _Network:
    """One BlazeFace network. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self._session = open_session(path)
        metadata = metadata_of(self._session)
        if metadata.get("visionai.kind") != "detector":
            raise StartupError(f"{path} is not a face detector made by `python -m models convert`")
        described: dict[str, Any] = json.loads(metadata["visionai.detector"])
        self.size: int = described["size"]
        self._centres = anchors(self.size, tuple((stride, count) for stride, count in described["grids"]))

    def look(self, image: Pixels, looks: list[_Look], min_score: float) -> list[tuple[Floats, Floats]]:
        """Detections of each look, in pixels of the image: points [k, 8, 2] and scores [k], not yet suppressed."""
        found = []
        for start in range(0, len(looks), _BATCH):
            part = looks[start : start + _BATCH]
            inputs = np.stack([_cut(image, each, self.size) for each in part])
            boxes, scores = self._session.run(["boxes", "scores"], {"images": inputs})
            for each, regressors, logits in zip(part, boxes, scores, strict=True):
                points, kept = decode_detections(regressors, logits, self._centres, self.size, min_score)
                offset = (-each.x / each.side, -each.y / each.side)
                found.append((unletterbox(points, (each.side, each.side), offset), kept))
        return found


class FaceDetector:
    """Finds faces. Threads may share it.

    Args:
        short_range: ONNX file of the first network.
        second: ONNX file of the network that is asked about doubtful faces, and where the first one sees nobody.
        small_faces: whether tiles are looked at: `auto` does for images of more than 800 pixels a side. `never` does
            without the second network, too.

    Raises:
        StartupError: a file is missing or is not a face detector.
    """

    def __init__(self, short_range: Path, second: Path, small_faces: SmallFaces = "auto") -> None:
        self._network = _Network(short_range)
        self._second = _Network(second)
        self._small_faces = small_faces

    def detect(self, image: Pixels, max_faces: int) -> list[Face]:
        """The faces in an image, largest first.

        Args:
            image: uint8 [h, w] gray or [h, w, 3] RGB, upright.
            max_faces: at most as many; a single one needs no look at tiles if it is larger than these.
        """
        height, width = image.shape[:2]
        whole = [_whole(width, height)]
        points, scores = suppress(*self._network.look(image, whole, _WHOLE_SCORE)[0])
        tiled = self._small_faces == "always" or (
            self._small_faces == "auto" and max(width, height) > _AUTO_TILES_ABOVE
        )
        # A face that fills more than a tile is larger than any that tiles show.
        zoom = max(1.0, max(width, height) / _LONGEST)
        if tiled and not (max_faces == 1 and (_sides(points) > _TILE * zoom).any()):
            points, scores = self._with_small_faces(image, points, scores, max_faces)
        if not len(points) and self._small_faces != "never":
            # Nobody near: the second network, of twice the resolution, sees faces half as large.
            points, scores = suppress(*self._second.look(image, whole, _SECOND_WHOLE_SCORE)[0])
            if tiled:  # what every tile may have cut; what is smaller was whole in one, and no face
                large = _sides(points) > (_TILE - _STEP) * zoom
                points, scores = points[large], scores[large]
        return to_faces(points, scores, width, height)[:max_faces]

    def _with_small_faces(
        self, image: Pixels, points: Floats, scores: Floats, max_faces: int
    ) -> tuple[Floats, Floats]:
        """Add what tiles show to what the whole image showed."""
        scale = min(1.0, _LONGEST / max(image.shape[:2]))
        if scale < 1:
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
        looks = [_Look(x, y, _TILE) for y in _steps(image.shape[0]) for x in _steps(image.shape[1])]
        found = self._network.look(image, looks, _TILE_SCORE)
        near = points * scale
        in_tiles = np.concatenate([part for part, _ in found])
        tile_scores = np.concatenate([part for _, part in found])
        # Of a face that is larger than a tile, tiles show parts: its box is not to be drawn towards them.
        for face in near[_sides(near) > _TILE]:
            whole = ~_overlaps(face, in_tiles)
            in_tiles, tile_scores = in_tiles[whole], tile_scores[whole]
        all_points, all_scores = np.concatenate([near, in_tiles]), np.concatenate([scores, tile_scores])
        order = np.argsort(-all_scores, kind="stable")
        all_points, all_scores = suppress(all_points[order], all_scores[order])
        kept = self._second_opinion(image, all_points, all_scores, near, max_faces)
        return all_points[kept] / np.float32(scale), all_scores[kept]

    def _second_opinion(
        self, image: Pixels, points: Floats, scores: Floats, near: Floats, max_faces: int
    ) -> npt.NDArray[np.bool_]:
        """Which faces stay: those that are sure, and those that the second network sees too.

        Where the whole image showed faces, `near`, more is asked of all others. Of those beyond the `max_faces`
        largest nothing is asked: they do not stay.
        """
        rows, columns = image.shape[:2]
        areas = np.prod(np.diff(np.clip(points[:, :2], 0, (columns, rows)), axis=1)[:, 0], axis=1)
        stays = np.zeros(len(points), bool)
        for index in np.argsort(-areas, kind="stable"):
            if stays.sum() == max_faces:
                break
            if scores[index] >= _SURE_SCORE:
                stays[index] = True
                continue
            face = points[index]
            stays[index] = self._second_score(image, face, _SECOND_LOOKS) >= _SECOND_SCORE
            beside = len(near) > 0 and not _overlaps(face, near).any()
            if stays[index] and beside:
                stays[index] = self._wide_score(image, face) >= _WIDE_SCORE
        return stays

    def _wide_score(self, image: Pixels, face: Floats) -> float:
        """The second network's mean score of a face in its surroundings, as they are and mirrored."""
        mirror_image = np.asarray(cv2.flip(image, 1), np.uint8)
        # The box in it: what was its right is its left.
        mirrored = face[:2].copy()
        mirrored[:, 0] = image.shape[1] - face[1::-1, 0]
        seen = self._second_score(image, face, _WIDE_LOOKS)
        return (seen + self._second_score(mirror_image, mirrored, _WIDE_LOOKS)) / 2

    def _second_score(self, image: Pixels, face: Floats, factors: tuple[float, ...]) -> float:
        """The second network's mean score of a face, over looks at multiples of its size."""
        # Scores count from low on, since their mean decides.
        found = self._second.look(image, [_around(face, factor) for factor in factors], 0.1)
        return sum(_best_overlapping(face, seen, scores) for seen, scores in found) / len(factors)


def _sides(points: Floats) -> Floats:
    """The longer side of each face's box."""
    return np.asarray((points[:, 1] - points[:, 0]).max(axis=1), np.float32)


def _whole(width: int, height: int) -> _Look:
    """The whole image in a square, centred."""
    side = max(width, height)
    return _Look((width - side) / 2, (height - side) / 2, side)


def _around(points: Floats, factor: float) -> _Look:
    """A square around a face, as a multiple of its size."""
    size = float(max(points[1] - points[0])) * factor
    x, y = (points[0] + points[1]) / 2 - size / 2
    return _Look(float(x), float(y), size)


def _steps(length: int) -> list[int]:
    """Where tiles begin along a side: evenly, at most `_STEP` apart, the last one ending with it."""
    last = max(0, length - _TILE)
    count = 1 + -(-last // _STEP)
    return [round(last * index / max(1, count - 1)) for index in range(count)]


def _cut(image: Pixels, look: _Look, size: int) -> Pixels:
    """What a look shows, as a network's input: uint8 [size, size, 3], black outside the image."""
    rows, columns = image.shape[:2]
    x0, y0 = max(0, round(look.x)), max(0, round(look.y))
    x1, y1 = min(columns, round(look.x + look.side)), min(rows, round(look.y + look.side))
    canvas = np.zeros((size, size, 3), np.uint8)
    if x0 >= x1 or y0 >= y1:
        return canvas
    scale = size / look.side
    # Where the region lies in the input, at least one pixel of it: rounding may put it one beyond either end.
    left = min(size - 1, max(0, round((x0 - look.x) * scale)))
    top = min(size - 1, max(0, round((y0 - look.y) * scale)))
    width = max(1, min(size - left, round((x1 - x0) * scale)))
    height = max(1, min(size - top, round((y1 - y0) * scale)))
    shrinks = scale < 1
    region = cv2.resize(
        image[y0:y1, x0:x1], (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    canvas[top : top + height, left : left + width] = region if region.ndim == 3 else region[:, :, None]
    return canvas


def _best_overlapping(face: Floats, seen: Floats, scores: Floats) -> float:
    """The best score among detections that are this face."""
    same = _overlaps(face, seen)
    return float(scores[same].max()) if same.any() else 0.0


def _overlaps(face: Floats, seen: Floats) -> npt.NDArray[np.bool_]:
    """Which detections are this face, by intersection over union."""
    common = np.prod(np.maximum(np.minimum(seen[:, 1], face[1]) - np.maximum(seen[:, 0], face[0]), 0), axis=1)
    union = np.prod(seen[:, 1] - seen[:, 0], axis=1) + np.prod(face[1] - face[0]) - common
    return np.asarray(common / np.maximum(union, 1e-9) > SAME_FACE, np.bool_)
