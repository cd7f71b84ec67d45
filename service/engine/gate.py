"""The accuracy gate: a provider that computes with less precision must still say what the full one says.

It is held against ONNX Runtime's CPU provider, which computes as the file says, on faces that are drawn here: no
photograph ships with the service, and drawn faces, which no network was trained on, are the harder test, since its
answers are less sure there.

Where the full answer is a near tie, either class is as good. So what counts is agreement where it leads by `LEAD`, and
how much probability moves. The bounds lie between two kinds of difference. Rounding to bfloat16 (8 bits, a relative
error of 0.4 % per operation) agreed on every drawn face with a lead and moved 1.8 % of the probability; on FER2013's
3,589 validation images it was 99.9 % (98.6 % with the near ties) and 0.9 %, when the bounds were set (with a network
in floats). What is broken
(turned or inverted images) agreed on less than half, and moved half of the probability.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from service.images.decode import InputShape

Images = npt.NDArray[np.uint8]
Run = Callable[[Images], npt.NDArray[np.float32]]

#: Faces that are drawn: one that differs is about 1 %.
FACES = 120

#: An answer is sure when its top class is ahead of the second by so much probability.
LEAD = 0.1

#: Least share of the sure answers with the same top class, and most probability that may move, on average over faces.
LEAST_AGREEMENT = 0.99
MOST_MOVED = 0.03


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two providers' answers are.

    `top_class` is the share of sure answers with the same top class, `moved` the mean total variation distance: half
    the sum of the probabilities' differences, 0 to 1.
    """

    top_class: float
    moved: float

    @property
    def passes(self) -> bool:
        """Whether they say the same."""
        return self.top_class >= LEAST_AGREEMENT and self.moved <= MOST_MOVED

    def __str__(self) -> str:
        return f"{self.top_class:.1%} of sure answers agree, {self.moved:.1%} of probability moved"


def compare(reference: Run, candidate: Run, images: Images) -> Agreement:
    """Hold a candidate's answers to images, uint8 [n, height, width, channels], against a reference's."""
    wanted, found = reference(images), candidate(images)
    if not np.isfinite(found).all():
        return Agreement(0.0, 1.0)
    second, first = np.sort(wanted, axis=1)[:, -2:].T
    sure = first - second >= LEAD
    alike = wanted.argmax(axis=1) == found.argmax(axis=1)
    # A model that is sure of nothing is judged by all of its answers.
    top_class = float(alike[sure].mean() if sure.any() else alike.mean())
    return Agreement(top_class, float(np.abs(wanted - found).sum(axis=1).mean() / 2))


def drawn_faces(shape: InputShape, count: int = FACES) -> Images:
    """Faces with all sorts of mouths, brows, eyes and light, the same ones every time: uint8 [n, height, width, c]."""
    random = np.random.default_rng(5)
    return np.stack([_drawn_face(random, shape) for _ in range(count)])


_SIDE = 192


def _drawn_face(random: np.random.Generator, shape: InputShape) -> Images:
    def around(x: float, y: float) -> tuple[int, int]:
        return round(x * _SIDE), round(y * _SIDE)

    tint = random.uniform(0.7, 1.0, 3)

    def shade(value: float) -> tuple[float, ...]:
        return tuple(float(v) for v in np.clip(value * tint, 0, 255))

    skin, dark = random.uniform(110, 230), random.uniform(10, 80)
    canvas = np.full((_SIDE, _SIDE, 3), shade(random.uniform(0, 255)), np.uint8)
    cv2.ellipse(
        canvas, around(0.5, 0.52), around(0.4, random.uniform(0.44, 0.52)), 0, 0, 360, shade(skin), -1
    )
    # Raised or lowered brows, opened or narrowed eyes, the mouth's corners up or down, the mouth open or shut.
    slant, brows = random.uniform(-20, 20), random.uniform(0.24, 0.34)
    opened, smile = random.uniform(0.012, 0.06), random.uniform(-0.09, 0.09)
    for side in (-1, 1):
        x = 0.5 + side * random.uniform(0.15, 0.19)
        cv2.ellipse(canvas, around(x, 0.42), around(0.075, opened), 0, 0, 360, shade(245), -1)
        cv2.circle(canvas, around(x, 0.42), round(min(opened, 0.035) * _SIDE), shade(dark), -1)
        cv2.ellipse(
            canvas, around(x, brows + 0.05), around(0.1, 0.05), side * slant, 200, 340, shade(dark), 4
        )
    cv2.line(canvas, around(0.5, 0.45), around(0.48, 0.6), shade(skin * 0.75), 3)
    mouth, width = (0.5, 0.74), random.uniform(0.1, 0.2)
    gape = random.choice([0.0, random.uniform(0.02, 0.1)])
    if gape:
        cv2.ellipse(canvas, around(*mouth), around(width, gape), 0, 0, 360, shade(dark * 0.5), -1)
    start, end = (0, 180) if smile > 0 else (180, 360)
    cv2.ellipse(canvas, around(mouth[0], mouth[1]), around(width, abs(smile)), 0, start, end, shade(dark), 4)
    # Light from one side, blur and noise.
    light = 1 + random.uniform(-0.4, 0.4) * np.linspace(-1, 1, _SIDE)[None, :, None]
    lit = cv2.GaussianBlur(np.clip(canvas * light, 0, 255).astype(np.uint8), (0, 0), random.uniform(0.5, 3))
    noisy = np.clip(lit + random.normal(0, random.uniform(0, 12), lit.shape), 0, 255).astype(np.uint8)
    sized = cv2.resize(noisy, (shape.width, shape.height), interpolation=cv2.INTER_AREA)
    if shape.channels == 1:
        sized = cv2.cvtColor(sized, cv2.COLOR_RGB2GRAY)
    return np.asarray(sized, np.uint8).reshape(shape.height, shape.width, shape.channels)
