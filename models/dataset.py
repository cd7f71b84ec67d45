"""FER2013 faces with FER+ votes: loading, truth and soft targets. Pure functions over numpy arrays.

A data file is an .npz with, for each split, `{split}_x` (uint8 [n, 48, 48]), `{split}_y` (FER2013's own label,
0..6 in alphabetical order) and `{split}_votes` (uint8 [n, 10]: how many of ten annotators chose each column of
`VOTE_COLUMNS`; Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced
Label Distribution", 2016). `{split}_in_train`, where present, marks images that also occur in the train split.
"""

from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

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

NO_TRUTH = -1


class DataError(ValueError):
    """The data file is missing, is not an .npz, or lacks an array; the message says which."""


@dataclass(frozen=True, slots=True)
class Split:
    """One split of the data: `images` uint8 [n, 48, 48], `labels` int64 [n] (FER2013's own, 0..6), `votes`
    uint8 [n, 10], `duplicate` bool [n] (the image also occurs in train)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    votes: NDArray[np.uint8]
    duplicate: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.images)


def load_split(path: Path, split: str) -> Split:
    """Read the arrays of `split` from the .npz file at `path`. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _read_split(archive, path, split)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (BadZipFile, OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable .npz file ({error})") from error


def _read_split(archive: np.lib.npyio.NpzFile, path: Path, split: str) -> Split:
    missing = [name for name in ("x", "y", "votes") if f"{split}_{name}" not in archive]
    if missing:
        splits = sorted(name[:-2] for name in archive.files if name.endswith("_x"))
        raise DataError(
            f"{path}: no split {split!r} (lacks {', '.join(f'{split}_{name}' for name in missing)}); "
            f"splits in this file: {', '.join(splits) or 'none'}"
        )
    images, labels, votes = archive[f"{split}_x"], archive[f"{split}_y"], archive[f"{split}_votes"]
    duplicate_key = f"{split}_in_train"
    duplicate = (
        archive[duplicate_key].astype(bool) if duplicate_key in archive else np.zeros(len(images), bool)
    )
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.dtype != np.uint8 or images.ndim != 3:
        raise DataError(
            f"{path}: {split}_x must be uint8 [n, height, width], got {images.dtype} {images.shape}"
        )
    if votes.shape != (len(images), len(VOTE_COLUMNS)) or labels.shape != (len(images),):
        raise DataError(
            f"{path}: {split}_y and {split}_votes must have one row for each of {len(images)} images"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(EMOTIONS):
        raise DataError(f"{path}: {split}_y must hold labels 0..{len(EMOTIONS) - 1}")
    return Split(images, labels.astype(np.int64), votes.astype(np.uint8), duplicate)


def majority(votes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the emotion (0..6) with most of each row's votes among all ten columns, int64 [n].

    `NO_TRUTH` where the row has no votes, where the most votes are shared by two columns, or where they went to
    contempt, unknown or not-a-face.
    """
    emotion_of_column = np.full(len(VOTE_COLUMNS), NO_TRUTH, np.int64)
    emotion_of_column[EMOTION_COLUMNS] = np.arange(len(EMOTIONS))
    most = votes.max(axis=1, initial=0)
    unique = (votes == most[:, None]).sum(axis=1) == 1
    return np.where(unique & (most > 0), emotion_of_column[votes.argmax(axis=1)], NO_TRUTH)


def soft_targets(votes: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turn votes into training targets: shares of the seven emotions, float32 [n, 7], and which rows to keep.

    A row is dropped when contempt, unknown or not-a-face has more votes than every emotion, or when nobody voted.
    A column with a single vote counts as a slip of one annotator and is left out (as FER+'s authors do), unless
    the row has nothing else. The targets of a dropped row are all zero.
    """
    emotions = votes[:, EMOTION_COLUMNS].astype(np.float32)
    others = np.delete(votes, EMOTION_COLUMNS, axis=1).max(axis=1, initial=0)
    keep = (emotions.max(axis=1, initial=0) > 0) & (emotions.max(axis=1, initial=0) >= others)
    agreed = np.where(emotions > 1, emotions, 0)
    emotions = np.where(agreed.any(axis=1, keepdims=True), agreed, emotions)
    shares = emotions / np.maximum(emotions.sum(axis=1, keepdims=True), 1)
    return np.where(keep[:, None], shares, 0).astype(np.float32), keep
