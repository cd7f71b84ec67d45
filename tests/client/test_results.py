"""Replies become typed results."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from client import results
from client.errors import ProtocolViolation

V1_PREDICTION: dict[str, Any] = {
    "type": "prediction",
    "status": "success",
    "emotion_name": "happy",
    "confidence": 0.9234,
    "model_version_tag": "v1.0.0",
    "processing_time_ms": 3,
    "timestamp": "2026-11-22T10:30:45.123456",
}


def test_a_v1_prediction_has_no_more_than_v1_says() -> None:
    """What a server of protocol 1 leaves out is empty or None."""
    found = results.prediction(V1_PREDICTION)
    assert (found.emotion_name, found.confidence, found.model_version_tag) == ("happy", 0.9234, "v1.0.0")
    assert found.processing_time_ms == 3
    assert found.timestamp == datetime(2026, 11, 22, 10, 30, 45, 123456, tzinfo=UTC)
    assert (found.probabilities, found.faces, found.face_detected) == ({}, (), None)
    assert (found.prediction_id, found.timing) == (None, None)


def test_a_v2_prediction_has_faces_probabilities_and_timing() -> None:
    """All fields of protocol 2 are typed."""
    reply = V1_PREDICTION | {
        "prediction_id": "0191d2a0-0000-7000-8000-000000000001",
        "probabilities": {"happy": 0.9, "sad": 0.1},
        "faces": [
            {
                "box": [1, 2, 30, 40],
                "detection_score": 0.8,
                "emotion_name": "happy",
                "confidence": 0.9,
                "probabilities": {"happy": 0.9},
                "face_id": 5,
            }
        ],
        "face_detected": True,
        "timing": {"decode": 0.1, "queue": 0.2, "inference": 0.3, "total": 0.7, "batch_size": 4},
    }
    found = results.prediction(reply)
    assert found.prediction_id == UUID("0191d2a0-0000-7000-8000-000000000001")
    assert found.probabilities == {"happy": 0.9, "sad": 0.1}
    assert found.faces == (results.Face(results.Box(1, 2, 30, 40), 0.8, "happy", 0.9, {"happy": 0.9}, 5),)
    assert found.face_detected is True
    assert found.timing == results.Timing(0.1, 0.2, 0.3, 0.7, 4)
    assert found.raw is reply


def test_an_offset_in_a_timestamp_is_kept() -> None:
    """Only a timestamp without an offset is taken for UTC."""
    found = results.prediction(V1_PREDICTION | {"timestamp": "2026-11-22T10:30:45-05:00"})
    assert found.timestamp.utcoffset() == timedelta(hours=-5)


def test_what_was_not_stored_has_no_id() -> None:
    """A null prediction_id is None."""
    assert results.prediction(V1_PREDICTION | {"prediction_id": None}).prediction_id is None


@pytest.mark.parametrize("field", ["emotion_name", "confidence", "model_version_tag", "timestamp"])
def test_a_missing_field_is_a_violation_that_names_it(field: str) -> None:
    """A prediction without a field of protocol 1 is refused, not guessed."""
    reply = {name: value for name, value in V1_PREDICTION.items() if name != field}
    with pytest.raises(ProtocolViolation, match=f"prediction reply lacks '{field}'"):
        results.prediction(reply)


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": "high"},
        {"timestamp": 5},
        {"timestamp": "yesterday"},
        {"faces": [{"box": [1, 2]}]},
        {"probabilities": [0.5]},
        {"prediction_id": "no uuid"},
    ],
)
def test_a_field_of_the_wrong_form_is_a_violation(wrong: dict[str, Any]) -> None:
    """Fields of other types than the protocol's are refused with the one documented error."""
    with pytest.raises(ProtocolViolation, match="prediction reply"):
        results.prediction(V1_PREDICTION | wrong)


def test_stats_without_a_percentile_leave_it_out() -> None:
    """An idle server has no p99 to report."""
    found = results.stats(
        {"window_s": 60, "count": 0, "mean_confidence": None, "emotions": {}, "latency_ms": {"p99": None}}
    )
    assert (found.count, found.mean_confidence, found.latency_ms) == (0, None, {})


def test_a_row_of_the_history_has_what_was_stored() -> None:
    """All that the server tells of a row is typed; what an older row has no column for is None, its face the first."""
    row = {"timestamp": "2026-11-22T10:30:45", "emotion_name": "happy", "confidence": 0.9}
    details: dict[str, Any] = {
        "prediction_id": "0191d2a0-0000-7000-8000-000000000001",
        "face_index": 1,
        "box": [1, 2, 30, 40],
        "request_id": "7",
        "model_version_tag": "v1",
        "processing_time_ms": 2.5,
    }
    found = results.history({"predictions": [row | details, row | {"prediction_id": None, "box": None}]})
    full, old = found.predictions
    assert (full.prediction_id, full.box) == (UUID(details["prediction_id"]), results.Box(1, 2, 30, 40))
    assert (full.face_index, full.request_id, full.model_version_tag) == (1, "7", "v1")
    assert full.processing_time_ms == 2.5
    assert (old.prediction_id, old.box, old.face_index) == (None, None, 0)
    assert (found.next, found.pending) == (None, 0)


def test_a_row_of_the_history_that_another_program_wrote() -> None:
    """It may lack its emotion and its confidence, which are None, and does not cost the rest of the page."""
    whole = {"timestamp": "2026-11-22T10:30:45", "emotion_name": "happy", "confidence": 0.9}
    rows = [whole, whole | {"emotion_name": None, "confidence": None}]
    found = results.history({"predictions": rows}).predictions
    assert [(row.emotion_name, row.confidence) for row in found] == [("happy", 0.9), (None, None)]


def test_stats_without_buckets_have_none() -> None:
    """Those of a server that sends null for them, or nothing, are empty; nothing is pending unless it says so."""
    reply: dict[str, Any] = {
        "window_s": 60,
        "count": 0,
        "mean_confidence": None,
        "emotions": {},
        "latency_ms": {},
    }
    for found in (results.stats(reply), results.stats(reply | {"buckets": None})):
        assert (found.buckets, found.since, found.pending) == ((), None, 0)


def test_a_model_of_a_server_without_canaries_has_all_connections() -> None:
    """Its share is the whole where the server tells of none."""
    model = {"version_tag": "v1", "active": True, "precision": "fp32", "labels": ["happy"]}
    (found,) = results.models({"models": [model]})
    assert found.share == 1.0


def test_results_are_equal_whatever_else_the_server_sent() -> None:
    """`raw` takes no part in comparing results, nor in showing them."""
    one, other = (results.prediction(V1_PREDICTION | {"newer": number}) for number in (1, 2))
    assert one == other
    assert "newer" not in repr(one)
