"""The faces that a conversion is proven on: from folders and arrays, with labels or without."""

from pathlib import Path

import numpy as np
import pytest

from conversion.errors import OptionError
from conversion.images import load_faces, load_labelled, portrait_variants
from tests.conversion.keras_models import LABELS


def test_faces_come_from_folders_and_arrays(face_folder: Path, tmp_path: Path) -> None:
    """Image files and .npz arrays are scaled to the model; labels become the model's class numbers."""
    assert load_faces(str(face_folder), (48, 48, 1), 1000).shape == (98, 48, 48, 1)
    assert load_faces(str(face_folder), (40, 32, 3), 10).shape == (10, 40, 32, 3)
    labelled = load_labelled(str(face_folder), (48, 48, 1), LABELS)
    assert np.bincount(labelled.classes).tolist() == [14] * 7
    faces = portrait_variants((48, 48, 1), 6)[..., 0]
    classes = np.array(["sad", "angry"])
    np.savez(tmp_path / "a.npz", val_x=faces, val_y=np.array([0, 1, 0, 1, 0, 1]), classes=classes)
    labelled = load_labelled(f"{tmp_path / 'a.npz'}:val", (48, 48, 1), LABELS)
    assert labelled.classes.tolist() == [LABELS.index("sad"), LABELS.index("angry")] * 3
    assert np.array_equal(labelled.images[..., 0], faces)
    np.savez(tmp_path / "b.npz", x=faces, y=np.array([0, 1, 0, 1, 0, 2]), classes=classes)
    with pytest.raises(OptionError, match="class number 2"):
        load_labelled(str(tmp_path / "b.npz"), (48, 48, 1), LABELS)
    for wrong in (np.array(["sad"] * 6), np.float64(1), np.zeros((6, 1), int), np.zeros(5, int)):
        np.savez(tmp_path / "b.npz", x=faces, y=wrong, classes=classes)
        with pytest.raises(OptionError, match="class numbers are"):
            load_labelled(str(tmp_path / "b.npz"), (48, 48, 1), LABELS)
    np.savez(tmp_path / "c.npz", x=faces, y=np.zeros(6, int), classes=["joy"])
    with pytest.raises(OptionError, match="class 'joy' is not one of the model's"):
        load_labelled(str(tmp_path / "c.npz"), (48, 48, 1), LABELS)


def test_a_folder_of_unpacked_arrays_is_a_folder(face_folder: Path, tmp_path: Path) -> None:
    """It may be named for the file that it came from."""
    folder = tmp_path / "faces.npz.unpacked"
    folder.symlink_to(face_folder)
    assert len(load_faces(str(folder), (48, 48, 1), 10)) == 10
    assert len(load_labelled(str(folder), (48, 48, 1), LABELS).images) == 98


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("none", "neither a folder"),
        ("none.npz", "no such file"),
        ("a.npz", "no array named 'x'"),
        ("bare", "no image files"),
        ("one.npz", "not a .npz file of named arrays"),
        ("damaged.npz", "not a readable .npz file"),
        ("objects.npz", "not a readable .npz file"),
        ("scalar.npz", r"images are uint8 \[\]"),
        ("nothing.npz", r"images are uint8 \[3, 0, 0\]"),
        ("rgba.npz", r"images are uint8 \[2, 9, 9, 4\]"),
        ("pictures", "empty.png: not an image"),
        ("folders", "folder.png: Is a directory"),
    ],
)
def test_unusable_faces(where: str, reason: str, tmp_path: Path) -> None:
    """A set of faces that is not there, is empty, or lacks its array is named."""
    np.savez(tmp_path / "a.npz", y=np.zeros(3))
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.zeros((2, 9, 9), np.uint8))
    np.savez_compressed(tmp_path / "damaged.npz", x=np.random.default_rng(0).bytes(9000))
    damaged = bytearray((tmp_path / "damaged.npz").read_bytes())
    damaged[90:120] = bytes(30)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    np.savez(tmp_path / "objects.npz", x=np.array([None]))
    np.savez(tmp_path / "scalar.npz", x=np.uint8(3))
    np.savez(tmp_path / "nothing.npz", x=np.zeros((3, 0, 0), np.uint8))
    np.savez(tmp_path / "rgba.npz", x=np.zeros((2, 9, 9, 4), np.uint8))
    (tmp_path / "folders" / "folder.png").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "empty.png").touch()
    with pytest.raises(OptionError, match=reason):
        load_faces(str(tmp_path / where), (48, 48, 1), 10)
