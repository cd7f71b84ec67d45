"""What every peer does with a request: base64, JPEG, the model. The service's own decoder and engine, one thread;
with DECODE=full the decoder is OpenCV's.

Runs in the peers' environments, which have what this imports and nothing else of the project.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from service.engine import Engine
from service.images.decode import ImageDecoder


class Job:
    """The model that the environment variable MODEL_PATH names."""

    def __init__(self) -> None:
        self._engine = Engine(Path(os.environ["MODEL_PATH"]))
        self._labels = self._engine.card.labels
        self._decoder = ImageDecoder(self._engine.card.shape, max_pixels=10**8)
        self._decode_fully = os.environ.get("DECODE") == "full"

    def __call__(self, images: Sequence[str]) -> list[dict[str, Any]]:
        """Replies to base64 images, in one run of the model."""
        shape = self._engine.card.shape
        inputs = np.empty((len(images), shape.height, shape.width, shape.channels), np.uint8)
        for image, slot in zip(images, inputs, strict=True):
            if self._decode_fully:
                self._decode(image, slot)
            else:
                self._decoder.decode_into(image, slot)
        replies = []
        for row in self._engine.run(inputs).tolist():
            confidence = max(row)
            replies.append(
                {
                    "status": "success",
                    "emotion_name": self._labels[row.index(confidence)],
                    "confidence": confidence,
                    "probabilities": dict(zip(self._labels, row, strict=True)),
                }
            )
        return replies

    def _decode(self, image: str, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """As a server's documentation would have it: the whole picture, then scaled."""
        shape = self._engine.card.shape
        flags = cv2.IMREAD_GRAYSCALE if shape.color == "gray" else cv2.IMREAD_COLOR_RGB
        pixels = cv2.imdecode(np.frombuffer(base64.b64decode(image), np.uint8), flags)
        assert pixels is not None
        out[:] = cv2.resize(pixels, (shape.width, shape.height), interpolation=cv2.INTER_AREA).reshape(
            out.shape
        )
