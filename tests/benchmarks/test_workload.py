"""What the benchmarks send: faces of which the served network is sure, and one of which it is not."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.workload import SIZES, make_workload
from service.engine import Engine
from service.images.decode import ImageDecoder
from service.settings import DEFAULT_MODEL


@pytest.mark.parametrize("size", SIZES)
def test_the_served_network_looks_twice_at_the_unsure_one_alone(size: str) -> None:
    """Each is answered as the load generator expects; only of the unsure one a mirror image is answered alike, for it
    gets the mean of both looks."""
    engine, workload = Engine(DEFAULT_MODEL), make_workload(size)
    shape = engine.card.shape
    face = np.empty((1, shape.height, shape.width, shape.channels), np.uint8)
    ImageDecoder(shape, max_pixels=10**6).decode_into(workload.image, face[0])
    answer = engine.run(face)[0]
    assert engine.card.labels[int(answer.argmax())] == workload.expected_emotion
    mirrored = engine.run(np.ascontiguousarray(face[:, :, ::-1]))[0]
    assert (np.abs(answer - mirrored).max() < 1e-4) == (size == "64x64-unsure")
