"""Ids of predictions."""

from __future__ import annotations

from itertools import pairwise
from uuid import RFC_4122, UUID

from service.store.prediction_ids import PredictionIds


def test_ids_count_up_within_the_range_of_their_connection() -> None:
    """Version 8 of RFC 9562, no two alike, ascending, and between the first and the last that there can be."""
    ids = PredictionIds()
    made = [UUID(ids.next()) for _ in range(1000)]
    assert len(set(made)) == 1000
    assert made == sorted(made)
    made += [UUID(PredictionIds().next()) for _ in range(100)]
    assert {(identifier.version, identifier.variant) for identifier in made} == {(8, RFC_4122)}
    assert ids.first == made[0]
    assert str(ids.last) == ids.next()[:-10] + 10 * "f"


def test_the_ranges_of_connections_lie_apart() -> None:
    """What one connection made is not among another's."""
    ranges = sorted((ids.first, ids.last) for ids in (PredictionIds() for _ in range(1000)))
    assert all(last < first for (_, last), (first, _) in pairwise(ranges))
