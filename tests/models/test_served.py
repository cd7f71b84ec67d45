"""The network that ships, on a public-domain face: NASA's portrait of Eileen Collins, who smiles."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from models.dataset import EMOTIONS
from models.predictor import Predictor, load_predictor

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served() -> Predictor:
    """The trained Keras file of this repository."""
    return load_predictor(ROOT / "models" / "modelo_emociones.keras")


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """The smiling face, uint8 [48, 48]."""
    picture = cv2.imread(str(ROOT / "conversion" / "portrait.png"), cv2.IMREAD_GRAYSCALE)
    assert picture is not None
    return np.asarray(cv2.resize(picture, (48, 48), interpolation=cv2.INTER_AREA), np.uint8)


def happiness(served: Predictor, image: np.ndarray) -> float:
    """The probability of `happy`."""
    return float(served.probabilities(image[None])[0, EMOTIONS.index("happy")])


def test_a_smile_is_happy(served: Predictor, portrait: np.ndarray) -> None:
    """Fails on a wrong class order, and on pixels scaled to 0..1 by mistake: those look black."""
    assert happiness(served, portrait) > 0.8
    assert happiness(served, portrait // 255) < 0.5


def test_a_smile_survives_mirror_dim_light_and_low_resolution(
    served: Predictor, portrait: np.ndarray
) -> None:
    """What a phone's front camera, a dark room and a far face do to the same face."""
    dim = (portrait * 0.6).astype(np.uint8)
    far = cv2.resize(cv2.resize(portrait, (24, 24), interpolation=cv2.INTER_AREA), (48, 48))
    for changed in (portrait[:, ::-1], dim, np.asarray(far, np.uint8)):
        assert happiness(served, np.ascontiguousarray(changed)) > 0.5


def test_probabilities_sum_to_one(served: Predictor, portrait: np.ndarray) -> None:
    """Calibration and softmax are inside the file."""
    assert served.probabilities(portrait[None]).sum() == pytest.approx(1, abs=1e-5)


def test_a_second_look_is_taken_at_what_the_first_is_unsure_of(
    served: Predictor, portrait: np.ndarray
) -> None:
    """With its mouth upside down the face gets the answer of its mirror image, the mean of both; the smile does not."""
    turned = portrait.copy()
    turned[26:43] = turned[26:43][::-1]
    for face, twice in ((turned, True), (portrait, False)):
        both = served.probabilities(np.stack([face, face[:, ::-1]]))
        assert (np.abs(both[0] - both[1]).max() < 1e-4) == twice
