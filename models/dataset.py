"""FER2013 faces with FER+ votes: loading, truth and soft targets. Pure functions over numpy arrays.

A data file is an .npz with, for each split, `{split}_x` (uint8 [n, height, width]; training needs 48x48), `{split}_y`
(FER2013's own label, 0..6) and `{split}_votes` ([n, 10]: how many of ten annotators chose each column, or their share;
Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution", 2016).
`{split}_in_train`, where present, marks images that also occur in the train split. Labels number the names in `classes`
and votes have the columns of `vote_columns`, where the file holds these; else they are in the order of `EMOTIONS` and
`VOTE_COLUMNS`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion.arrays import ArraysError, read_arrays

EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
VOTE_COLUMNS = (
    "neutral",
    "happiness",
    "surprise",
    "sadness",
    "anger",
    "disgust",
    "fear",
    "contempt",
    "unknown",
    "NF",
)
_COLUMN_OF_EMOTION = {
    "angry": "anger",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happiness",
    "neutral": "neutral",
    "sad": "sadness",
    "surprise": "surprise",
}
# The vote column of each emotion, in the order of EMOTIONS.
EMOTION_COLUMNS = np.array([VOTE_COLUMNS.index(_COLUMN_OF_EMOTION[name]) for name in EMOTIONS])

# Networks are trained on faces of this height and width.
INPUT_SIDE = 48
NO_TRUTH = -1


Votes = NDArray[np.integer[Any] | np.floating[Any]]


class DataError(ValueError):
    """The data file is missing, is not an .npz, or an array is missing or wrong; the message says which."""


@dataclass(frozen=True, slots=True)
class Split:
    """One split of the data: `images` uint8 [n, height, width], `labels` int64 [n] (FER2013's own, in the order of
    EMOTIONS), `votes` int64 or float64 [n, 10] (in the order of VOTE_COLUMNS, not negative), `duplicate` bool [n] (the
    image also occurs in train)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    votes: Votes
    duplicate: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images)


def load_split(path: Path, split: str, side: int | None = None) -> Split:
    """Read `split` from the .npz file at `path`: one image or more, where a `side` is given of that height and width.

    Raises DataError.
    """
    names = {name: f"{split}_{name}" for name in ("x", "y", "votes", "in_train")}
    names |= {name: name for name in ("classes", "vote_columns")}
    try:
        found, present = read_arrays(path, names.values())
    except ArraysError as error:
        raise DataError(f"{path}: {error}") from error
    missing = [names[name] for name in ("x", "y", "votes") if names[name] not in found]
    if missing and names["x"] in found:
        raise DataError(f"{path}: split {split!r} lacks {', '.join(missing)}")
    if missing:
        splits = sorted(name[:-2] for name in present if name.endswith("_x"))
        raise DataError(
            f"{path}: no split {split!r} (lacks {', '.join(missing)}); "
            f"splits in this file: {', '.join(splits) or 'none'}"
        )
    try:
        read = _checked({name: found[key] for name, key in names.items() if key in found})
        if side is not None and read.images.shape[1:] != (side, side):
            raise ValueError(f"images are {list(read.images.shape)}, expected {side}x{side}")
    except ValueError as error:
        raise DataError(f"{path}, split {split!r}: {error}") from None
    return read


def _checked(arrays: Mapping[str, NDArray[Any]]) -> Split:
    """Make a split of arrays by the ends of their names. Raises ValueError."""
    images, labels, votes = arrays["x"], arrays["y"], arrays["votes"]
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(f"x must be uint8 [n, height, width], got {images.dtype} {list(images.shape)}")
    if not images.size:
        raise ValueError(f"there is nothing in its images {list(images.shape)}")
    duplicate = arrays.get("in_train", np.zeros(len(images), bool))
    expected = {"y": (len(images),), "votes": (len(images), len(VOTE_COLUMNS)), "in_train": (len(images),)}
    for name, array in (("y", labels), ("votes", votes), ("in_train", duplicate)):
        if array.shape != expected[name] or array.dtype.kind not in "biuf":
            raise ValueError(
                f"{name} must be numbers, one row for each image {list(expected[name])}, "
                f"got {array.dtype} {list(array.shape)}"
            )
    if not (labels == np.floor(labels)).all() or not 0 <= labels.min() <= labels.max() < len(EMOTIONS):
        raise ValueError(f"y must hold whole labels 0..{len(EMOTIONS) - 1}")
    if not np.isfinite(votes).all() or votes.min() < 0:
        raise ValueError("votes must hold finite numbers, none of them negative")
    classes = _order("classes", arrays.get("classes"), EMOTIONS)
    columns = _order("vote_columns", arrays.get("vote_columns"), VOTE_COLUMNS)
    ours = np.argsort(classes)[labels.astype(np.int64)]
    votes = votes[:, columns].astype(np.float64 if votes.dtype.kind == "f" else np.int64)
    return Split(images, ours, votes, duplicate.astype(bool))


def _order(name: str, found: NDArray[Any] | None, ours: Sequence[str]) -> NDArray[np.int64]:
    """Return where each of our names is among those that the file has. Raises ValueError unless they are the same."""
    theirs = list(ours) if found is None else [str(each) for each in found.ravel()]
    if sorted(theirs) != sorted(ours):
        raise ValueError(f"{name} are {', '.join(theirs)}; expected {', '.join(ours)}, in any order")
    return np.array([theirs.index(each) for each in ours])


def majority(votes: Votes) -> NDArray[np.int64]:
    """Return the emotion (0..6) with most of each row's votes among all ten columns, int64 [n].

    `NO_TRUTH` where the row has no votes, where the most votes are shared by two columns, or where they went to
    contempt, unknown or not-a-face.
    """
    emotion_of_column = np.full(len(VOTE_COLUMNS), NO_TRUTH, np.int64)
    emotion_of_column[EMOTION_COLUMNS] = np.arange(len(EMOTIONS))
    # Without votes all ten share the most.
    unique = (votes == votes.max(axis=1, keepdims=True)).sum(axis=1) == 1
    return np.where(unique, emotion_of_column[votes.argmax(axis=1)], NO_TRUTH)


def scored_rows(split: Split) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the FER+ truth of each row (0..6, NO_TRUTH where it has none) and which rows are scored by it: those that
    have one and don't occur in train. Raises DataError when there is none."""
    truth = majority(split.votes)
    scored = (truth != NO_TRUTH) & ~split.duplicate
    if not scored.any():
        also = " and does not occur in train" if (truth != NO_TRUTH).any() else ""
        raise DataError(f"no row of this split has a FER+ majority among the seven emotions{also}")
    return truth, scored


def soft_targets(votes: Votes) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turn votes into training targets: shares of the seven emotions, float32 [n, 7], and which rows to keep.

    A row is dropped when contempt, unknown or not-a-face has more votes than every emotion, or when nobody voted.
    A column with a single vote counts as a slip of one annotator and is left out (as FER+'s authors do), unless
    the row has nothing else; of shares, which are 1 at most, none is. The targets of a dropped row are all zero.
    """
    emotions = votes[:, EMOTION_COLUMNS].astype(np.float32)
    others = np.delete(votes, EMOTION_COLUMNS, axis=1).max(axis=1, initial=0)
    keep = (emotions.max(axis=1, initial=0) > 0) & (emotions.max(axis=1, initial=0) >= others)
    agreed = np.where(emotions > 1, emotions, 0)
    emotions = np.where(agreed.any(axis=1, keepdims=True), agreed, emotions)
    shares = np.zeros_like(emotions)
    np.divide(emotions, emotions.sum(axis=1, keepdims=True), out=shares, where=keep[:, None])
    return shares, keep
