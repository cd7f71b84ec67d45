"""What the source network answers, with preprocessing done in NumPy, apart from the graph under test."""

import numpy as np
import numpy.typing as npt

from conversion.errors import SourceError
from conversion.images import Images, Probabilities, portrait_variants, random_images
from conversion.options import Specification
from conversion.sources import Source
from conversion.tensorflow_quietly import tf

_BATCH = 128
# Softmax outputs sum to one within rounding: 1e-3 leaves room for networks that compute in half precision.
_SUM_TOLERANCE = 1e-3


def network_input(images: Images, specification: Specification) -> npt.NDArray[np.float32]:
    """Turn uint8 images into what the network was trained on: float32, `pixel * scale + offset`."""
    pixels = images.astype(np.float32)
    if specification.channel_order == "bgr":
        pixels = pixels[..., ::-1]
    scaled = pixels * np.array(specification.scale, np.float32) + np.array(specification.offset, np.float32)
    return np.ascontiguousarray(scaled, np.float32)


def reference_probabilities(source: Source, specification: Specification, images: Images) -> Probabilities:
    """Return [N, classes] in our label order, computed by TensorFlow for uint8 `images`."""
    scores = _scores(source, network_input(images, specification))
    if specification.activation == "logits":
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    return np.ascontiguousarray(scores[:, specification.order], np.float32)


def _scores(source: Source, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    batches = [
        np.asarray(source.call(tf.constant(inputs[start : start + _BATCH])), np.float32)
        for start in range(0, len(inputs), _BATCH)
    ]
    return np.concatenate(batches)


def detect_activation(source: Source) -> str:
    """Return `softmax` when the outputs are probabilities and `logits` when they are not.

    Judged by what the network answers, not by the name of its last layer: this also holds for subclassed
    networks and SavedModels. Raises SourceError for outputs that look like neither (independent sigmoids).
    """
    images = np.concatenate([random_images(8, source.geometry), portrait_variants(source.geometry, 8)])
    # In [0, 1]: whatever the right input range is, probabilities stay probabilities.
    scores = _scores(source, images.astype(np.float32) / np.float32(255))
    if not np.isfinite(scores).all():
        raise SourceError(f"{source.path}: the network answers NaN or infinity")
    within = bool((scores >= -_SUM_TOLERANCE).all() and (scores <= 1 + _SUM_TOLERANCE).all())
    if within and bool(np.allclose(scores.sum(axis=1), 1, atol=_SUM_TOLERANCE)):
        return "softmax"
    if within:
        raise SourceError(
            f"{source.path}: outputs lie in 0..1 but do not sum to 1 (independent sigmoids?);"
            " give --activation softmax or --activation logits to convert it anyway"
        )
    return "logits"
