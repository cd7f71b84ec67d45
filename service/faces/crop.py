"""Cutting a face out of an image: turned upright by its eyes, with a margin that suits the emotion network."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from service.faces.decode import Face

Pixels = npt.NDArray[np.uint8]

# The square that is cut out, as a multiple of the face box's longer side, and how far its centre is moved up, as a
# multiple too: the box ends at the eyebrows, and the network wants the forehead.
SCALE = 1.2
LIFT = 0.05

# Beyond this the eyes are more likely misplaced than the head is tilted: a face on its side is not turned.
_MAX_TILT = math.radians(45)


def crop_face(
    image: Pixels, face: Face, height: int, width: int, *, scale: float = SCALE, lift: float = LIFT
) -> Pixels:
    """One face as the emotion network takes it.

    Args:
        image: uint8 [h, w] gray or [h, w, 3].
        face: as the detector found it in `image`.
        height, width: of the result.
        scale, lift: the square's side and how far its centre is moved up, in longer sides of the face's box.

    Returns:
        uint8 [height, width] or [height, width, 3]: a square around the face, eyes level. What lies outside the
        image repeats its edge.
    """
    x, y, w, h = face.box
    side = max(w, h) * scale
    centre = np.array([x + w / 2, y + h / 2 - max(w, h) * lift])
    angle = _tilt(face)
    # First an upright region that holds the turned square, shrunk by averaging if it is large: sampling a large
    # region at a few points only, as the turning does, would alias.
    reach = side / 2 * (math.cos(angle) + abs(math.sin(angle)))
    x0, y0 = math.floor(centre[0] - reach), math.floor(centre[1] - reach)
    x1, y1 = math.ceil(centre[0] + reach), math.ceil(centre[1] + reach)
    top, left = max(0, y0), max(0, x0)
    region = image[top:y1, left:x1]
    # Where the middle of the whole square lies in the part of it that the image has. What is missing is never made: of
    # a wide face in a thin image it would be many times the image.
    middle = np.array([(x0 + x1) / 2 - left, (y0 + y1) / 2 - top])
    shrink = min(1.0, 2 * max(height, width) / side)
    if shrink < 1:
        before = region.shape
        size = (max(1, round(before[1] * shrink)), max(1, round(before[0] * shrink)))
        region = np.asarray(cv2.resize(region, size, interpolation=cv2.INTER_AREA), np.uint8)
        middle *= (size[0] / before[1], size[1] / before[0])
    zoom = width / (side * shrink)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]) * zoom
    shift = np.array([width / 2, height / 2]) - turn @ middle
    matrix = np.column_stack([turn, shift])
    turned = cv2.warpAffine(
        region, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(turned, np.uint8)


def _tilt(face: Face) -> float:
    """Radians that the line through the eyes is turned clockwise, as seen; 0 where it cannot be trusted."""
    right, left = face.keypoints[0], face.keypoints[1]
    dx, dy = float(left[0] - right[0]), float(left[1] - right[1])
    angle = math.atan2(dy, dx)
    return angle if abs(angle) <= _MAX_TILT else 0.0
