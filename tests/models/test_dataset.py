from pathlib import Path

import numpy as np
import pytest

from models.dataset import (
    EMOTIONS,
    NO_TRUTH,
    VOTE_COLUMNS,
    DataError,
    load_split,
    majority,
    scored_rows,
    soft_targets,
)


def votes(**counts: int) -> np.ndarray:
    """One row of ten vote counts, given by column name."""
    row = np.zeros((1, len(VOTE_COLUMNS)), np.uint8)
    for column, count in counts.items():
        row[0, VOTE_COLUMNS.index(column)] = count
    return row


@pytest.mark.parametrize(
    ("column", "emotion"),
    [
        ("anger", "angry"),
        ("disgust", "disgust"),
        ("fear", "fear"),
        ("happiness", "happy"),
        ("neutral", "neutral"),
        ("sadness", "sad"),
        ("surprise", "surprise"),
    ],
)
def test_majority_maps_each_vote_column_to_its_emotion(column: str, emotion: str) -> None:
    """The most voted column decides, and lands on the emotion of the same meaning in our order."""
    assert EMOTIONS[majority(votes(**{column: 6}, unknown=4))[0]] == emotion


@pytest.mark.parametrize(
    "row",
    [
        votes(contempt=6, happiness=4),
        votes(unknown=5, sadness=3, neutral=2),
        votes(NF=10),
        votes(anger=5, sadness=5),
        votes(anger=4, unknown=4, fear=2),
        votes(),
    ],
)
def test_rows_without_a_clear_emotion_have_no_truth(row: np.ndarray) -> None:
    """Contempt, unknown, not-a-face, ties (with any column) and rows without votes are left out."""
    assert majority(row)[0] == NO_TRUTH


def test_soft_targets_are_shares_of_the_seven_emotions_without_single_votes() -> None:
    """A lone vote is dropped as a slip, the rest sums to one, and columns outside the seven don't count."""
    targets, keep = soft_targets(votes(happiness=6, surprise=2, neutral=1, unknown=1))
    assert keep.tolist() == [True]
    expected = dict.fromkeys(EMOTIONS, 0.0) | {"happy": 0.75, "surprise": 0.25}
    assert dict(zip(EMOTIONS, targets[0].tolist(), strict=True)) == expected


def test_soft_targets_of_shares_are_those_of_the_votes_that_they_are_of() -> None:
    """They sum to one, too, where some of the annotators chose no emotion."""
    counts = votes(happiness=6, sadness=2, contempt=2)
    np.testing.assert_allclose(soft_targets(counts / 10)[0], soft_targets(counts)[0], rtol=1e-6)


def test_soft_targets_keep_single_votes_where_there_is_nothing_else() -> None:
    """A row with one vote for each of two emotions still has a target."""
    targets, keep = soft_targets(votes(sadness=1, fear=1))
    assert keep[0]
    assert targets[0, EMOTIONS.index("sad")] == targets[0, EMOTIONS.index("fear")] == 0.5


def test_soft_targets_drop_rows_that_are_not_one_of_the_seven() -> None:
    """A row mostly contempt, unknown, not-a-face or empty is not trained on; one with as many for an emotion is."""
    dropped = [votes(contempt=6, anger=4), votes(NF=8, fear=2), votes()]
    kept = [votes(anger=5, sadness=5), votes(anger=5, contempt=5)]
    assert soft_targets(np.concatenate([*dropped, *kept]))[1].tolist() == [False] * 3 + [True] * 2


def write(path: Path, **changes: np.ndarray) -> Path:
    """A data file with three faces in split `some`."""
    arrays = {
        "some_x": np.zeros((3, 48, 48), np.uint8),
        "some_y": np.array([0, 3, 6], np.uint8),
        "some_votes": np.zeros((3, 10), np.uint8),
    }
    np.savez(path, **(arrays | changes))
    return path


def test_a_split_of_any_name_loads_and_has_no_duplicates_unless_the_file_says_so(tmp_path: Path) -> None:
    """`{split}_in_train` marks duplicates where present; without it no image is one."""
    assert load_split(write(tmp_path / "a.npz"), "some").duplicate.tolist() == [False] * 3
    marked = write(tmp_path / "b.npz", some_in_train=np.array([False, True, False]))
    assert load_split(marked, "some").duplicate.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"some_x": np.zeros((3, 48, 48), np.float32)}, "uint8"),
        ({"some_x": np.uint8(3)}, "uint8"),
        ({"some_x": np.zeros((0, 48, 48), np.uint8)}, "nothing in its images"),
        ({"some_x": np.zeros((3, 0, 48), np.uint8)}, "nothing in its images"),
        ({"some_votes": np.zeros((3, 7), np.uint8)}, "one row"),
        ({"some_votes": np.full((3, 10), -1)}, "negative"),
        ({"some_votes": np.full((3, 10), np.nan)}, "finite"),
        ({"some_votes": np.full((3, 10), "1")}, "numbers"),
        ({"some_y": np.array([0, 3, 7], np.uint8)}, r"0\.\.6"),
        ({"some_y": np.array([0, 3, 0.5])}, "whole labels"),
        ({"some_y": np.array([0, 3, np.nan])}, "whole labels"),
        ({"some_y": np.array(["sad"] * 3)}, "numbers"),
        ({"some_y": np.uint8(3)}, "one row"),
        ({"some_in_train": np.zeros(2, bool)}, "one row"),
        ({"classes": np.array([*EMOTIONS[1:], "joy"])}, "classes are"),
        ({"vote_columns": np.array(VOTE_COLUMNS[:9])}, "vote_columns are"),
        ({"vote_columns": np.float64(1)}, "vote_columns are"),
    ],
)
def test_arrays_of_the_wrong_form_are_refused(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    """What is no image, vote, label or mark, or no row for each image, is named in the error."""
    with pytest.raises(DataError, match=message):
        load_split(write(tmp_path / "bad.npz", **changes), "some")


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    """The error for an unknown split lists the splits of the file."""
    with pytest.raises(DataError, match="splits in this file: some"):
        load_split(write(tmp_path / "data.npz"), "test")


def test_a_split_that_is_there_in_part_is_not_said_to_be_missing(tmp_path: Path) -> None:
    """Images without votes: the arrays to add are named, and no list of splits that has this one."""
    np.savez(tmp_path / "some.npz", some_x=np.zeros((3, 48, 48), np.uint8), some_y=np.zeros(3, np.uint8))
    with pytest.raises(DataError, match=r"some\.npz: split 'some' lacks some_votes$"):
        load_split(tmp_path / "some.npz", "some")


def test_rows_that_are_left_out_as_duplicates_are_not_said_to_have_no_majority(tmp_path: Path) -> None:
    """What is missing of a split that cannot be scored: a majority, or one of an image that is not in train."""
    happy, marked = np.repeat(votes(happiness=9), 3, axis=0), np.ones(3, bool)
    duplicates = load_split(write(tmp_path / "a.npz", some_votes=happy, some_in_train=marked), "some")
    with pytest.raises(DataError, match=r"seven emotions and does not occur in train$"):
        scored_rows(duplicates)
    with pytest.raises(DataError, match=r"seven emotions$"):
        scored_rows(load_split(write(tmp_path / "b.npz", some_in_train=marked), "some"))


def test_a_missing_or_foreign_file_is_a_data_error(tmp_path: Path) -> None:
    """Neither a path to nothing nor a text file ends in a traceback of numpy's."""
    with pytest.raises(DataError, match="no such file"):
        load_split(tmp_path / "none.npz", "val")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match=r"not a \.npz"):
        load_split(tmp_path / "text.npz", "val")


def test_labels_and_votes_are_read_by_the_names_that_the_file_gives_them(tmp_path: Path) -> None:
    """With `classes` and `vote_columns` in another order, the same faces have the same labels and votes."""
    counts = np.arange(30).reshape(3, 10)
    reordered = write(
        tmp_path / "a.npz",
        some_y=np.array([1, 4, 0], np.uint8),
        some_votes=np.roll(counts, 1, axis=1),
        classes=np.roll(EMOTIONS, 1),
        vote_columns=np.roll(VOTE_COLUMNS, 1),
    )
    split = load_split(reordered, "some")
    assert [EMOTIONS[label] for label in split.labels] == ["angry", "happy", "surprise"]
    assert np.array_equal(split.votes, counts)


@pytest.mark.parametrize("unit", [0.1, 100, 2**40])
def test_votes_are_ranked_as_they_are(tmp_path: Path, unit: float) -> None:
    """Shares are not cut to whole numbers, and counts beyond a byte don't wrap round."""
    most = np.concatenate([votes(anger=4, fear=3), votes(sadness=5, neutral=4), votes(happiness=10)])
    split = load_split(write(tmp_path / "a.npz", some_votes=most.astype(int) * unit), "some")
    assert [EMOTIONS[emotion] for emotion in majority(split.votes)] == ["angry", "sad", "happy"]
