"""From a detector's raw output to faces: anchors, boxes, non-maximum suppression. Pure numpy.

BlazeFace (Bazarevsky et al. 2019) is a single-shot detector with anchors of fixed size 1: a cell of the output grid
predicts boxes and six keypoints as offsets from its centre, in pixels of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# Boxes that overlap more than this (intersection over union) are the same face. MediaPipe's value.
SAME_FACE = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face in an image.

    `box` is x, y, width, height in pixels of the image, within it. `score` is in 0..1. `keypoints` is float32
    [6, 2] in pixels: the subject's right eye, left eye, nose tip, mouth, right ear and left ear, which may lie
    outside the image.
    """

    box: tuple[int, int, int, int]
    score: float
    keypoints: Floats


@lru_cache(maxsize=8)
def anchors(size: int, grids: tuple[tuple[int, int], ...]) -> Floats:
    """Centres of the anchors: float32 [n, 2], x and y in 0..1, in the order of the network's output.

    Args:
        size: the network's input, in pixels a side.
        grids: (stride in pixels, anchors per cell) of each output grid.
    """
    centres = []
    for stride, per_cell in grids:
        cells = -(-size // stride)
        line = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        y, x = np.meshgrid(line, line, indexing="ij")
        centres.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), per_cell, axis=0))
    return np.concatenate(centres)


def decode_detections(
    regressors: Floats, logits: Floats, centres: Floats, size: int, min_score: float
) -> tuple[Floats, Floats]:
    """Detections above a score, before suppression.

    Args:
        regressors: float32 [n, 16]: box centre, box size, six keypoints, in pixels relative to the anchor.
        logits: float32 [n].
        centres: the anchors, [n, 2] in 0..1.
        size: the network's input, in pixels a side.
        min_score: in 0..1; what is below is left out.

    Returns:
        Corners and keypoints as float32 [k, 8, 2] in 0..1 of the network's input (top left, bottom right, six
        keypoints), and scores float32 [k], best first.
    """
    # Compared as logits: the sigmoid is then taken of the few that pass.
    passing = np.flatnonzero(logits > np.log(min_score / (1 - min_score)))
    if not len(passing):
        return np.empty((0, 8, 2), np.float32), np.empty(0, np.float32)
    scores = 1 / (1 + np.exp(-logits[passing]))
    order = np.argsort(-scores, kind="stable")
    passing, scores = passing[order], scores[order]
    raw = regressors[passing].reshape(-1, 8, 2) / size
    points = raw + centres[passing][:, None, :]
    half = raw[:, 1] / 2
    points[:, 1] = points[:, 0] + half
    points[:, 0] = points[:, 0] - half
    return points.astype(np.float32), scores.astype(np.float32)


def suppress(points: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Weighted non-maximum suppression: one detection per face, averaged over those that overlap it, by score.

    Args:
        points: [k, 8, 2], the first two rows of each the corners; best score first.
        scores: [k].

    Returns:
        The same for the m faces: [m, 8, 2] and [m].
    """
    areas = np.prod(np.maximum(points[:, 1] - points[:, 0], 0), axis=1)
    alive = np.ones(len(points), bool)
    faces, best = [], []
    for index in range(len(points)):
        if not alive[index]:
            continue
        low = np.maximum(points[:, 0], points[index, 0])
        high = np.minimum(points[:, 1], points[index, 1])
        common = np.prod(np.maximum(high - low, 0), axis=1)
        overlap = common / np.maximum(areas + areas[index] - common, 1e-9)
        same = alive & (overlap > SAME_FACE)
        same[index] = True
        alive &= ~same
        faces.append(np.average(points[same], axis=0, weights=scores[same]))
        best.append(scores[index])
    return np.asarray(faces, np.float32).reshape(-1, 8, 2), np.asarray(best, np.float32)


def to_faces(points: Floats, scores: Floats, width: int, height: int) -> list[Face]:
    """Faces of an image from points in its pixels, largest first. What lies wholly outside is left out."""
    corners = np.clip(points[:, :2], 0, (width, height))
    faces = []
    # By what the boxes were before they were rounded: the order is then the same at any scale.
    for index in np.argsort(-np.prod(corners[:, 1] - corners[:, 0], axis=1), kind="stable"):
        (x0, y0), (x1, y1) = corners[index].tolist()
        x, y = round(x0), round(y0)
        box = (x, y, min(round(x1 - x0), width - x), min(round(y1 - y0), height - y))
        if box[2] > 0 and box[3] > 0:
            faces.append(Face(box, float(scores[index]), points[index, 2:]))
    return faces


def unletterbox(points: Floats, scale: Sequence[float], offset: Sequence[float]) -> Floats:
    """Points in 0..1 of a letterboxed input, in pixels of the image: `(points - offset) * scale`, per axis."""
    return ((points - np.asarray(offset, np.float32)) * np.asarray(scale, np.float32)).astype(np.float32)
