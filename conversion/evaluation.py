"""Accuracy of a model on labelled faces."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from conversion.images import LabelledImages
from conversion.sessions import open_session, run

_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`confusion[i, j]` counts images of class i that were called class j, in the order of `labels`."""

    labels: tuple[str, ...]
    confusion: npt.NDArray[np.int64]

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of images called their own class, 0..1."""
        return float(np.trace(self.confusion) / self.images)

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON can hold them."""
        return {
            "images": self.images,
            "accuracy": round(self.accuracy, 6),
            "labels": list(self.labels),
            "confusion": self.confusion.tolist(),
        }


def evaluate(model: bytes, faces: LabelledImages, advance: Callable[[int], None]) -> Evaluation:
    """Run `model` on labelled faces; `advance` is called with the number of images done."""
    session = open_session(model)
    confusion = np.zeros((len(faces.labels),) * 2, np.int64)
    for start in range(0, len(faces.images), _CHUNK):
        answers = run(session, faces.images[start : start + _CHUNK]).argmax(axis=1)
        np.add.at(confusion, (faces.classes[start : start + _CHUNK], answers), 1)
        advance(len(answers))
    return Evaluation(faces.labels, confusion)
