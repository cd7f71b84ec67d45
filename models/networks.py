"""Load Keras networks that tell emotions, and refuse what is none."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion.errors import SourceError, quoted
from conversion.sourcefile import identify
from models.dataset import EMOTIONS, INPUT_SIDE

# float32 sums of seven probabilities are this close to one, with room for networks that compute in half precision.
_SUM_TOLERANCE = 1e-3


class ModelError(ValueError):
    """The model file is missing, unreadable or not an emotion classifier; the message says which."""


def load_network(path: Path, side: int | None = None) -> Any:
    """Load a .keras file that maps images of one fixed size, gray or RGB, to [n, 7]; where a `side` is given, grey ones
    of that height and width. What it answers to noise is finite. Raises ModelError."""
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        identify(path)  # Keras says of one that is cut off that it was not found.
    except SourceError as error:
        raise ModelError(str(error)) from None
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    try:
        network = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises nearly every type here; each becomes one line.
        raise ModelError(f"{path}: Keras cannot load it ({quoted(error)})") from error
    inputs = _input_shape(network)
    if len(inputs) != 4 or not all(isinstance(side, int) for side in inputs[1:]) or inputs[3] not in (1, 3):
        raise ModelError(f"{path}: takes {inputs}, not [n, height, width, 1 or 3] of one fixed size")
    if side is not None and inputs[1:] != [side, side, 1]:
        raise ModelError(f"{path}: takes {inputs}, not grey faces of {side}x{side}")
    # Not of one grey: a network may divide by the contrast.
    noise = np.random.default_rng(0).integers(0, 256, (1, *inputs[1:])).astype(np.float32)
    answer = network(noise, training=False)
    found = list(getattr(answer, "shape", [])) or type(answer).__name__
    if found != [1, len(EMOTIONS)]:
        raise ModelError(f"{path}: gives {found} for one face, not [1, {len(EMOTIONS)}]")
    if not np.isfinite(np.asarray(answer)).all():
        raise ModelError(f"{path}: answers NaN or infinity: its training diverged, or the file is damaged")
    return network


def load_trained(path: Path) -> Any:
    """Load a network as training leaves it: grey faces of INPUT_SIDE to logits [n, 7]. Raises ModelError."""
    network = load_network(path, INPUT_SIDE)
    noise = np.random.default_rng(0).integers(0, 256, (2, INPUT_SIDE, INPUT_SIDE, 1)).astype(np.float32)
    if are_probabilities(np.asarray(network(noise, training=False))):
        raise ModelError(f"{path}: gives probabilities, not logits: it has been exported already")
    return network


def are_probabilities(scores: NDArray[np.floating[Any]]) -> bool:
    """Whether each row of [n, k] is within 0..1 and sums to 1. NaN and infinity are neither."""
    within = (scores >= 0) & (scores <= 1 + _SUM_TOLERANCE)
    return bool(within.all() and (np.abs(scores.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())


def _input_shape(network: Any) -> list[Any]:
    """Return the shape of the input; of several, or of one that is not known, something shorter."""
    try:
        shape = network.input_shape
    except AttributeError:  # A subclassed network that has not been called.
        return []
    return list(shape) if isinstance(shape, tuple) else [shape]
