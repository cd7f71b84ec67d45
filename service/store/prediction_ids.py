"""The ids of predictions: what a connection made is one range of the index that makes them unique.

So a connection's own rows are found without a column, or an index, that every write would pay for.
"""

from __future__ import annotations

import itertools
import os
from typing import Final
from uuid import UUID

# RFC 9562, section 5.8: 48 bits of ours, the version, 12 bits of ours, the variant, 62 bits of ours.
_VERSION_8: Final = 0x8 << 76
_VARIANT: Final = 0b10 << 62
_FIXED: Final = (0xF << 76) | (0b11 << 62)

# 2^40 predictions at 10,000 a second are three years of one connection; 82 random bits are left, and two among a
# thousand million connections share them with a probability of 1e-7.
_COUNTER_BITS: Final = 40
_COUNTER_DIGITS: Final = _COUNTER_BITS // 4


class PredictionIds:
    """The ids of one connection's predictions: UUIDs of version 8, random but for a counter at their end.

    They count up in the order in which they are taken, and all lie from `first` to `last`.
    """

    def __init__(self) -> None:
        random = int.from_bytes(os.urandom(16)) >> _COUNTER_BITS << _COUNTER_BITS
        self._prefix = random & ~_FIXED | _VERSION_8 | _VARIANT
        self._text = str(self.first)[:-_COUNTER_DIGITS]
        self._counter = itertools.count()

    def next(self) -> str:
        """A new id, in the usual form. Threads may share this: the counter is atomic.

        Text, since nothing but JSON is made of it, and a `UUID` takes ten times as long to make.
        """
        return f"{self._text}{next(self._counter):0{_COUNTER_DIGITS}x}"

    @property
    def first(self) -> UUID:
        """The lowest of all ids that there can be."""
        return UUID(int=self._prefix)

    @property
    def last(self) -> UUID:
        """The highest of all ids that there can be."""
        return UUID(int=self._prefix + (1 << _COUNTER_BITS) - 1)
