"""How sure a network is of what it says, and of rare emotions: fitted on faces whose truth is known. Pure functions."""

import numpy as np
from numpy.typing import NDArray

from models.metrics import cross_entropy, expected_calibration_error

# Temperatures outside this are no calibration but a broken network.
_COLDEST, _HOTTEST = 0.25, 4.0
_BIN_COUNTS = range(8, 31)
# e^2: a class is not made more than seven times as likely.
_MOST_BIAS = 2.0
# What share of its faces an emotion is to be found in more than.
LEAST_RECALL = 0.5


def fit_temperature(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """The temperature that gives the least cross-entropy, by golden-section search (it is convex in 1/T).

    `logits` is [n, k], `truth` [n] with 0..k-1. Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    golden = (np.sqrt(5) - 1) / 2
    low, high = 1 / _HOTTEST, 1 / _COLDEST
    while high - low > 1e-4:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if cross_entropy(logits * left, truth) < cross_entropy(logits * right, truth):
            high = right
        else:
            low = left
    return float(2 / (low + high))


def settle_temperature(logits: NDArray[np.floating], truth: NDArray[np.int64], fitted: float) -> float:
    """Return which temperature within a tenth of the `fitted` one has the least calibration error.

    Near the least cross-entropy that hardly changes for several hundredths. The error is the mean over 8 to 30 bins:
    of one count alone it depends on where the edges fall, by half a point for 3,000 rows. `logits` is [n, k], `truth`
    [n] with 0..k-1.
    """

    def error(temperature: float) -> float:
        probabilities = softmax(logits / temperature)
        return float(
            np.mean([expected_calibration_error(probabilities, truth, bins) for bins in _BIN_COUNTS])
        )

    return float(min(fitted * np.linspace(0.9, 1.1, 41), key=error))


def fit_biases(logits: NDArray[np.floating], truth: NDArray[np.int64]) -> NDArray[np.float32]:
    """What to add to each emotion's logit so that its recall is above LEAST_RECALL: float32 [k], the least multiples
    of 0.1, at most 2, for the classes that fall short, and 0 for the others.

    Above, for a runtime that rounds otherwise may take a face away. Where two classes take faces from each other and
    no biases find enough of both, these are the least with which the fewest classes fall short.

    `logits` is [n, k], `truth` [n] with 0..k-1. A rare class loses doubtful faces to common ones, by their number
    in training; a bias gives some back. A class without rows keeps 0.
    """
    biases = best = np.zeros(logits.shape[1], np.float32)
    fewest = len(short_of(logits, truth))
    while True:
        before = biases
        biases = _raised(logits, truth, biases)
        short = len(short_of(logits + biases, truth))
        if short < fewest:
            best, fewest = biases, short
        # A class may have taken faces from one that had enough before: that one is raised again.
        if not short or (biases == before).all():
            return best


def _raised(
    logits: NDArray[np.floating], truth: NDArray[np.int64], biases: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`biases`, with that of one class after the other raised until it has enough of its faces."""
    biases = biases.copy()
    for emotion in range(len(biases)):
        own = truth == emotion
        while own.any() and biases[emotion] < _MOST_BIAS:
            if ((logits + biases)[own].argmax(axis=1) == emotion).mean() > LEAST_RECALL:
                break
            biases[emotion] += np.float32(0.1)
    return biases


def short_of(logits: NDArray[np.floating], truth: NDArray[np.int64]) -> dict[int, float]:
    """Return the recalls, by class, that are not above LEAST_RECALL; a class without rows has none."""
    found = logits.argmax(axis=1) == truth
    recalls = {int(emotion): float(found[truth == emotion].mean()) for emotion in np.unique(truth)}
    return {emotion: recall for emotion, recall in recalls.items() if not recall > LEAST_RECALL}


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return probabilities, float32 [n, k], of logits [n, k]."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)
