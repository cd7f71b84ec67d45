import numpy as np
import pytest

from models.augmentation import LIGHT, MEDIUM, STRONG, Augmentation, augment, augment_batch


@pytest.fixture
def faces() -> np.ndarray:
    """Eight smooth 48x48 images that differ."""
    rows, columns = np.mgrid[0:48, 0:48]
    waves = [np.sin(rows / (3 + k)) + np.cos(columns / (4 + k)) for k in range(8)]
    return np.stack([(wave + 2) * 63 for wave in waves]).astype(np.uint8)


@pytest.mark.parametrize("how", [STRONG, MEDIUM, LIGHT])
def test_a_seed_gives_the_same_faces_again(faces: np.ndarray, how: Augmentation) -> None:
    """A resumed run must see what an uninterrupted one would."""
    targets = np.eye(7, dtype=np.float32)[np.arange(8) % 7]
    first, _ = augment_batch(faces, targets, how, np.random.default_rng(5))
    again, _ = augment_batch(faces, targets, how, np.random.default_rng(5))
    other, _ = augment_batch(faces, targets, how, np.random.default_rng(6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_batches_have_the_form_the_network_takes(faces: np.ndarray) -> None:
    """Faces come out as float32 [n, 48, 48, 1] in 0..255 and targets still sum to one."""
    targets = np.eye(7, dtype=np.float32)[np.arange(8) % 7]
    mixed, blended = augment_batch(faces, targets, STRONG, np.random.default_rng(0))
    assert mixed.shape == (8, 48, 48, 1)
    assert mixed.dtype == np.float32
    assert mixed.min() >= 0
    assert mixed.max() <= 255
    assert blended.sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_mixup_keeps_most_of_each_face_and_its_own_target_on_top(faces: np.ndarray) -> None:
    """The greater weight is always the face's own, so a batch never swaps its targets."""
    targets = np.eye(7, dtype=np.float32)[[0, 1, 2, 3, 4, 5, 6, 0]]
    how = Augmentation(mixup_probability=1.0)
    _, blended = augment_batch(faces, targets, how, np.random.default_rng(1))
    assert (blended * targets).sum(axis=1).min() >= 0.5
    assert blended.max(axis=1).min() < 1


def test_the_original_face_is_left_alone(faces: np.ndarray) -> None:
    """Augmentation works on a copy: the data stay as they were for the next epoch."""
    before = faces.copy()
    rng = np.random.default_rng(2)
    for face in faces:
        augment(face, Augmentation(erase_probability=1.0), rng)
    assert np.array_equal(faces, before)
