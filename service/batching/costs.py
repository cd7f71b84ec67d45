"""What a request is taken to cost, by what those before it took. No threads, no clock."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Doubt:
    """A prediction that turned requests away, or that one batch alone vouches for.

    `refused` were turned away since the last try; the next is made after `patience` of them. `tried`: what is observed
    next is believed where it is less.
    """

    refused: int = 0
    patience: int = 2
    tried: bool = False


class CostModel:
    """Predicts the seconds of one executor that a request takes from its kind and size, by what it saw so far.

    Sizes in bytes are told apart by powers of two; each has an exponential average. A size not seen yet is predicted
    as the nearest one of its kind that was. What took much longer than predicted was held up, by a machine that
    stood still, say: a batch, however large, moves a prediction by half of the way at most, towards no more than
    `_OUTLIER` times what it was, or one stall would turn away requests for long after it.

    The first after a pause takes longer than those behind it, of which more fit into a batch, and which find the caches
    warm: by how little these were seen to take, others `behind` some are priced, if that is less.

    What is turned away for its price is not run, and so corrects no price. Of those that are, one now and then is tried
    (`is_tried`): after two, after twice as many each time that the price proves right, after `_RAREST` at last.
    """

    _WEIGHT = 0.1
    _MOST = 0.5
    _FIRST_GUESS = 0.001
    _OUTLIER = 4.0
    _RAREST = 16
    # From which factor on another prediction is news, see `observe`.
    _NEWS = 1.5

    def __init__(self) -> None:
        self._averages: dict[Hashable, dict[int, float]] = {}
        # Those of what was worked on without a pause before it.
        self._behind: dict[tuple[Hashable, int], float] = {}
        # The predictions that were news last.
        self._told: dict[tuple[Hashable, int], float] = {}
        self._doubts: dict[tuple[Hashable, int], _Doubt] = {}

    def is_tried(self, kind: Hashable, size: int) -> bool:
        """Whether a request that is late by its price alone is run nevertheless, to see what it really takes."""
        doubt = self._doubts.setdefault((kind, size.bit_length()), _Doubt())
        if doubt.refused < doubt.patience:
            doubt.refused += 1
            return False
        doubt.refused, doubt.patience, doubt.tried = 0, min(self._RAREST, 2 * doubt.patience), True
        return True

    def predict(self, kind: Hashable, size: int, behind: bool = False) -> float:
        """Seconds for a request of this kind and size, that waits `behind` others or not."""
        magnitude = size.bit_length()
        price = self._predict(kind, magnitude)
        return min(price, self._behind.get((kind, magnitude), price)) if behind else price

    def _predict(self, kind: Hashable, magnitude: int) -> float:
        averages = self._averages.get(kind)
        if not averages:
            return self._FIRST_GUESS
        known = averages.get(magnitude)
        if known is not None:
            return known
        return averages[min(averages, key=lambda seen: abs(seen - magnitude))]

    def observe(self, batch: Iterable[tuple[Hashable, int, float]], behind: bool = False) -> bool:
        """Take in what the requests of one batch took: their kind, size in bytes, and seconds.

        `behind`: they had waited when the batch before it was done. Returns whether the prediction for such is far from
        what it was when this said so last: then what waits at the price that it had when it came is to be priced anew
        (`MicroBatchQueue.reprice`).
        """
        alike: dict[tuple[Hashable, int], list[float]] = {}
        for kind, size, seconds in batch:
            alike.setdefault((kind, size.bit_length()), []).append(seconds)
        news = False
        for of_what, took in alike.items():
            news |= self._take_in(of_what, took, behind)
        return news

    def _take_in(self, of_what: tuple[Hashable, int], took: list[float], behind: bool) -> bool:
        """Learn from requests of one batch, of one kind and size. They share the run, and what held it up."""
        kind, magnitude = of_what
        told = self._told.get(of_what)
        if told is None:
            told = self._told[of_what] = self._predict(kind, magnitude)
        averages = self._averages.setdefault(kind, {})
        mean = sum(took) / len(took)
        known = averages.get(magnitude)
        doubt = self._doubts.get(of_what)
        if known is None:
            # It may have been cold, or held up: the next one is believed if it takes less.
            known, self._doubts[of_what] = mean, _Doubt(tried=True)
        elif doubt is not None and doubt.tried:
            doubt.tried = False
            if mean * self._NEWS < known:
                del self._doubts[of_what]
            known = min(known, mean)
        weight = min(self._MOST, len(took) * self._WEIGHT)
        average = averages[magnitude] = known + weight * (min(mean, self._OUTLIER * known) - known)
        if behind:
            known = self._behind.get(of_what, mean)
            self._behind[of_what] = known + weight * (min(mean, self._OUTLIER * known) - known)
        average = min(average, self._behind.get(of_what, average))
        if told / self._NEWS <= average <= told * self._NEWS:
            return False
        self._told[of_what] = average
        return True
