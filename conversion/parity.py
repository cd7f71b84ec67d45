"""Compare what two models answer, and judge the difference."""

from dataclasses import dataclass

import numpy as np

from conversion.images import Probabilities


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How far a model may be from its reference, in probability (0..1), and how often it must agree.

    Each precision has its own. float32: the two runtimes sum in different orders, which moves a probability
    by some 1e-6 on faces; noise drives deep networks to activations where 3e-5 was seen. 1e-4 leaves room for
    that and is far below what a wrong scale or channel order does.
    """

    max_difference: float
    mean_difference: float
    agreement: float


# Two probabilities this close may change places when each moves by the float32 bound.
_TIE = 2e-5

# A network that is INT8 in its source: integers add up exactly, but where a float32 sum in the source lies on the
# edge between two steps the two runtimes may take different ones. Seen: 0.02, 4e-5 and all alike on 1024 faces.
ROUNDED = "rounded"

DEFAULT_THRESHOLDS = {
    "fp32": Thresholds(max_difference=1e-4, mean_difference=1e-5, agreement=1.0),
    "fp16": Thresholds(max_difference=2e-2, mean_difference=2e-3, agreement=0.99),
    "int8": Thresholds(max_difference=0.5, mean_difference=2e-2, agreement=0.95),
    ROUNDED: Thresholds(max_difference=0.1, mean_difference=1e-3, agreement=0.995),
}


@dataclass(frozen=True, slots=True)
class Parity:
    """The distance between two models on one set of images.

    `max_difference` and `mean_difference` are absolute, over all probabilities; `agreement` is the share of
    images with the same top class (`compare` says how ties count).
    """

    images: int
    max_difference: float
    mean_difference: float
    agreement: float


def compare(reference: Probabilities, candidate: Probabilities) -> Parity:
    """Return the distance of `candidate` from `reference`, both [N, classes].

    Answers whose top class the reference holds within 2e-5 of its own count as agreeing. NaN in the
    candidate gives an infinite difference.
    """
    difference = np.abs(reference.astype(np.float64) - candidate.astype(np.float64))
    difference[~np.isfinite(difference)] = np.inf
    rows = np.arange(len(reference))
    chosen = reference[rows, np.nan_to_num(candidate).argmax(axis=1)]
    agreeing = reference.max(axis=1) - chosen <= _TIE
    return Parity(len(reference), float(difference.max()), float(difference.mean()), float(agreeing.mean()))


def failures(parity: Parity, thresholds: Thresholds) -> list[str]:
    """Return, in words, every threshold that `parity` breaks; empty when it passes."""
    found = []
    if not parity.max_difference <= thresholds.max_difference:
        found.append(f"max difference {parity.max_difference:.3g} > {thresholds.max_difference:g}")
    if not parity.mean_difference <= thresholds.mean_difference:
        found.append(f"mean difference {parity.mean_difference:.3g} > {thresholds.mean_difference:g}")
    if not parity.agreement >= thresholds.agreement:
        found.append(f"top-class agreement {parity.agreement:.2%} < {thresholds.agreement:.2%}")
    return found
