"""What the benchmarks send: faces of which the served network is sure, and one of which it is not."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.workload import SIZES, faces_of, make_workload
from service.engine import Engine
from service.images.decode import ImageDecoder
from service.settings import DEFAULT_MODEL


@pytest.mark.parametrize("size", SIZES)
def test_the_served_network_looks_twice_at_the_unsure_one_alone(size: str) -> None:
    """The sure one is answered as the load generator expects; only of the unsure one a mirror image is answered alike,
    for it gets the mean of both looks."""
    engine, workload = Engine(DEFAULT_MODEL), make_workload(size)
    shape = engine.card.shape
    face = np.empty((1, shape.height, shape.width, shape.channels), np.uint8)
    for kind, request in zip(faces_of(size), workload.requests, strict=True):
        ImageDecoder(shape, max_pixels=10**6).decode_into(request.image, face[0])
        answer = engine.run(face)[0]
        assert request.expected_emotion in (None, engine.card.labels[int(answer.argmax())])
        mirrored = engine.run(np.ascontiguousarray(face[:, :, ::-1]))[0]
        assert (np.abs(answer - mirrored).max() < 1e-4) == (kind == "unsure")


def test_mixed_faces_are_as_often_unsure_as_the_model_card_says() -> None:
    """One of three, where the card tells of 35 of a hundred."""
    faces = faces_of("64x64")
    assert faces.count("unsure") / len(faces) == pytest.approx(0.35, abs=0.02)
