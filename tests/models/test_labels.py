import inspect
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.dataset import DataError, Split
from models.label import LabelledViews, label_command
from models.labels import Labels, load_labels, save_labels
from models.recipe import Recipe
from models.train import train_command
from models.training import batches, steps_per_epoch, view

RECIPE = Recipe(batch_size=16, epochs=10, light_share=0.2)


def faces(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = np.eye(7, dtype=np.float32)[rng.integers(0, 7, count)]
    return rng.integers(0, 256, (count, 48, 48), dtype=np.uint8), targets


def split(count: int = 4, grey: int = 0, votes: int = 0) -> Split:
    """Faces to label, of one grey, with so many votes for each column."""
    images = np.full((count, 48, 48), grey, np.uint8)
    return Split(images, np.zeros(count, np.int64), np.full((count, 10), votes), np.zeros(count, bool))


def numbered(views: int, rows: int, first: float) -> np.ndarray:
    """Probabilities that tell their view and row: of view v and row r, first + v + r / 100."""
    values = first + np.arange(views)[:, None] + np.arange(rows)[None] / 100
    return np.repeat(values[..., None], 7, axis=-1).astype(np.float16)


def test_a_student_sees_the_pixels_that_its_teacher_labelled() -> None:
    """Epochs take turns over the views, mirrored in every second turn; the pixels are those of `view`, the targets a
    blend with its labels."""
    images, targets = faces()
    rows = steps_per_epoch(targets, RECIPE) * RECIPE.batch_size
    labels = Labels(numbered(3, rows, 10), numbered(2, rows, 20))
    for epoch, number, light, first in (
        (0, 0, False, 10),
        (4, 1, False, 10),
        (9, 1, True, 20),
        (2, 2, False, 10),
    ):
        got = list(batches(images, targets, RECIPE, epoch, labels))
        seen = list(view(images, targets, RECIPE, number, light))
        assert len(got) == len(seen) > 1
        start = 0
        for (face, blended), (same, votes) in zip(got, seen, strict=True):
            assert np.array_equal(face, same[:, :, ::-1] if epoch == 4 else same)
            taught = first + number + np.arange(start, start + len(face)) / 100
            start += len(face)
            expected = RECIPE.teaching * taught[:, None] + (1 - RECIPE.teaching) * votes
            assert blended == pytest.approx(expected, rel=2e-3)


def test_labels_of_other_views_are_refused(tmp_path: Path) -> None:
    """They load with the recipe and faces of the views, whatever its length and rate; not with another seed or face."""
    path = tmp_path / "labels.npz"
    save_labels(path, Labels(numbered(1, 4, 0), numbered(1, 4, 0)), RECIPE, split())
    loaded = load_labels(path, replace(RECIPE, epochs=3, peak_rate=0.01), split())
    assert loaded.strong.shape == (1, 4, 7)
    with pytest.raises(DataError, match="another recipe"):
        load_labels(path, replace(RECIPE, seed=1), split())
    for other in (split(grey=1), split(votes=1), split(count=5)):
        with pytest.raises(DataError, match="other faces"):
            load_labels(path, RECIPE, other)


@pytest.mark.parametrize(("share", "missing"), [(1, "strong"), (0, "light")])
def test_labels_may_lack_the_views_that_a_run_has_no_epoch_of(
    tmp_path: Path, share: float, missing: str
) -> None:
    """One with light augmentation alone needs no others, and the other way round; one with both says what would do."""
    path = tmp_path / "labels.npz"
    counts = {"strong": 2, "light": 2} | {missing: 0}
    save_labels(
        path, Labels(**{kind: numbered(count, 4, 0) for kind, count in counts.items()}), RECIPE, split()
    )
    loaded = load_labels(path, replace(RECIPE, light_share=share), split())
    assert (len(loaded.strong), len(loaded.light)) == (counts["strong"], counts["light"])
    with pytest.raises(DataError, match=f"labels no {missing}ly augmented views.*--light-share {share}$"):
        load_labels(path, replace(RECIPE, light_share=0.5), split())


def test_labelling_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    """What was labelled is not asked for again; a view whose labelling failed is; nothing is left in the end."""
    folder, teacher, data = tmp_path / "labels.npz.views", tmp_path / "teacher.keras", tmp_path / "data.npz"
    teacher.write_bytes(b"a network")
    data.write_bytes(b"faces")
    asked = []

    def label(number: int) -> np.ndarray:
        asked.append(number)
        if asked == [0, 1]:
            raise KeyboardInterrupt
        view: np.ndarray = numbered(1, 4, number)[0]
        return view

    begun = LabelledViews(folder, [teacher], data, RECIPE, bf16=True)
    begun.get(False, 0, lambda: label(0))
    with pytest.raises(KeyboardInterrupt):
        begun.get(False, 1, lambda: label(1))
    resumed = LabelledViews(folder, [teacher], data, RECIPE, bf16=True)
    said = [resumed.get(False, number, partial(label, number)) for number in range(2)]
    assert asked == [0, 1, 1]
    assert np.array_equal(np.stack(said), numbered(2, 4, 0))
    resumed.remove()
    assert not folder.exists()


def test_a_view_that_was_cut_off_is_labelled_again(tmp_path: Path) -> None:
    """A full disk or a power cut left half of its file, or an empty one."""
    teacher, data = tmp_path / "teacher.keras", tmp_path / "data.npz"
    teacher.write_bytes(b"a network")
    data.write_bytes(b"faces")
    views = LabelledViews(tmp_path / "views", [teacher], data, RECIPE, bf16=True)
    wanted: np.ndarray = numbered(1, 40, 0)[0]
    views.get(True, 0, lambda: wanted)
    path = tmp_path / "views" / "light-0.npy"
    for part in (0, 200):
        path.write_bytes(path.read_bytes()[:part])
        assert np.array_equal(views.get(True, 0, lambda: wanted), wanted)
        assert np.array_equal(np.load(path), wanted)


def test_views_of_other_teachers_are_not_mixed_in(tmp_path: Path) -> None:
    """Labels that another teacher, other faces, another recipe or precision began are refused, with what to do."""
    teacher, data = tmp_path / "teacher.keras", tmp_path / "data.npz"
    teacher.write_bytes(b"a network")
    data.write_bytes(b"faces")
    LabelledViews(tmp_path / "views", [teacher], data, RECIPE, bf16=True)
    with pytest.raises(DataError, match="other bf16; delete it"):
        LabelledViews(tmp_path / "views", [teacher], data, RECIPE, bf16=False)
    with pytest.raises(DataError, match="other recipe; delete it"):
        LabelledViews(tmp_path / "views", [teacher], data, replace(RECIPE, seed=1), bf16=True)
    teacher.write_bytes(b"a better one")
    data.write_bytes(b"more faces")
    with pytest.raises(DataError, match="other teachers, data; delete it"):
        LabelledViews(tmp_path / "views", [teacher], data, RECIPE, bf16=True)
    (tmp_path / "views" / "made-by.json").unlink()
    (tmp_path / "views" / "strong-0.npy").touch()
    with pytest.raises(DataError, match="does not say what it was begun with; delete it"):
        LabelledViews(tmp_path / "views", [teacher], data, RECIPE, bf16=True)


def test_a_file_that_holds_no_labels_is_named(tmp_path: Path) -> None:
    """A missing file, and one that is something else."""
    with pytest.raises(DataError, match="no such file"):
        load_labels(tmp_path / "none.npz", RECIPE, split())
    (tmp_path / "text.npz").write_text("no labels")
    with pytest.raises(DataError, match=r"not a \.npz"):
        load_labels(tmp_path / "text.npz", RECIPE, split())
    np.savez(tmp_path / "faces.npz", strong=np.zeros(3))
    with pytest.raises(DataError, match="not a file of labels"):
        load_labels(tmp_path / "faces.npz", RECIPE, split())


@pytest.mark.parametrize("kind", ["strong", "light"])
@pytest.mark.parametrize(
    "views",
    [
        np.zeros((1, 4, 5), np.float16),
        np.zeros((4, 7), np.float16),
        np.float16(0.5),
        np.zeros((1, 4, 7), np.int64),
        np.full((1, 4, 7), np.nan, np.float16),
        np.array([[["happy"] * 7] * 4]),
    ],
    ids=["classes", "one view", "one number", "integers", "NaN", "text"],
)
def test_labels_of_another_form_are_refused(kind: str, views: np.ndarray, tmp_path: Path) -> None:
    """Before hours of training, not in the middle of them."""
    arrays = {"strong": numbered(1, 4, 0), "light": numbered(1, 4, 0)} | {kind: views}
    save_labels(tmp_path / "labels.npz", Labels(**arrays), RECIPE, split())
    with pytest.raises(
        DataError, match=rf"labels\.npz: {kind} must be finite floats \[views, faces, 7\], got "
    ):
        load_labels(tmp_path / "labels.npz", RECIPE, split())


def test_the_example_of_train_reads_the_labels_where_label_writes_them() -> None:
    """The option's default, so that one example after the other runs."""
    written = inspect.signature(label_command).parameters["output"].default
    assert f"--labels {written}" in (train_command.__doc__ or "")
