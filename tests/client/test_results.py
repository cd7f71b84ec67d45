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
