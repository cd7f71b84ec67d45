"""Classification figures from probabilities, or logits, and truth. Pure functions over numpy arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ECE_BINS = 15  # as Guo et al., "On Calibration of Modern Neural Networks", 2017


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """Of one class: `precision`, `recall` and `f1` in 0..1 (0 where undefined), and `n`, its true rows."""

    precision: float
    recall: float
    f1: float
    n: int


def accuracy(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """Return the share of rows whose most probable class is the true one; NaN without rows.

    `probabilities` is [n, k], `truth` [n] with 0..k-1.
    """
    return float((probabilities.argmax(axis=1) == truth).mean()) if len(truth) else float("nan")


def cross_entropy(logits: NDArray[np.floating], truth: NDArray[np.int64]) -> float:
    """Return the mean of what the softmax of `logits` loses on the true classes; finite, however sure it is of others.

    `logits` is [n, k], `truth` [n] with 0..k-1.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    totals = np.exp(shifted).sum(axis=1)
    own = shifted[np.arange(len(truth)), truth]
    likelihoods = np.asarray(np.exp(own) / totals, np.float32)
    # In float32, as a network answers, and from the logits where that has no number so small.
    tiny = np.finfo(np.float32).tiny
    losses = -np.log(np.maximum(likelihoods, tiny))
    beyond = likelihoods < tiny
    losses[beyond] = (np.log(totals) - own)[beyond]
    return float(losses.mean())


def confusion_matrix(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return counts int64 [k, k]: the row is the true class, the column the most probable one."""
    classes = probabilities.shape[1]
    cells = truth * classes + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


def class_figures(confusion: NDArray[np.int64]) -> list[ClassFigures]:
    """Return precision, recall and F1 of each class of a confusion matrix (rows true, columns predicted)."""
    hits = np.diag(confusion).astype(float)
    predicted, true = confusion.sum(axis=0), confusion.sum(axis=1)
    figures = []
    for hit, claimed, present in zip(hits, predicted, true, strict=True):
        precision = hit / claimed if claimed else 0.0
        recall = hit / present if present else 0.0
        f1 = 2 * hit / (claimed + present) if claimed + present else 0.0
        figures.append(ClassFigures(float(precision), float(recall), float(f1), int(present)))
    return figures


def expected_calibration_error(
    probabilities: NDArray[np.float32], truth: NDArray[np.int64], bins: int = ECE_BINS
) -> float:
    """Return how far confidence is from accuracy, 0..1: the mean over rows of |accuracy - confidence| of the
    row's bin, with `bins` equal bins of confidence (Guo et al., 2017)."""
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == truth
    # Bins are (low, high], as in the paper; a confidence of exactly 0 joins the first.
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence.astype(np.float64), minlength=bins)
    return float(np.abs(gaps).sum() / max(len(truth), 1))
