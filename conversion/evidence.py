"""What a conversion is judged by: images, the source's answers to them, and labelled faces."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from conversion.images import (
    Geometry,
    Images,
    LabelledImages,
    Probabilities,
    load_faces,
    load_labelled,
    portrait_variants,
    random_images,
)
from conversion.manifest import reference_images
from conversion.options import Specification
from conversion.reference import reference_probabilities
from conversion.sources import Source

RANDOM_IMAGES = 128
# Of a larger set, this many evenly spaced ones are compared.
MOST_FACES = 1024
_CHUNK = 64

# Begins a long part: its name and its number of steps; returns what to call with the number of steps done.
Stage = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Images by set (`random`, `faces`, and the manifest's `reference`), and the source's answers to each.

    `real_faces` says whether `faces` were given by the caller, or are the bundled portrait.
    """

    images: Mapping[str, Images]
    answers: Mapping[str, Probabilities]
    real_faces: bool
    labelled: LabelledImages | None
    labelled_name: str | None


def gather(
    source: Source, specification: Specification, faces: str | None, labelled: str | None, stage: Stage
) -> Evidence:
    """Load images and run the source on them, outside the graph under test. Raises OptionError."""
    geometry: Geometry = (specification.height, specification.width, specification.channels)
    images = {
        "random": random_images(RANDOM_IMAGES, geometry),
        "faces": load_faces(faces, geometry, MOST_FACES) if faces else portrait_variants(geometry),
        "reference": reference_images(geometry),
    }
    labelled_images = load_labelled(labelled, geometry, specification.labels) if labelled else None
    advance = stage("ask the source", sum(len(batch) for batch in images.values()))
    answers = {}
    for name, batch in images.items():
        parts = []
        for start in range(0, len(batch), _CHUNK):
            part = reference_probabilities(source, specification, batch[start : start + _CHUNK])
            parts.append(part)
            advance(len(part))
        answers[name] = np.concatenate(parts)
    return Evidence(images, answers, faces is not None, labelled_images, labelled)
