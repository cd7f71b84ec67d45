"""Accuracy against time: mirrored looks, and who is on the front."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from models.dataset import VOTE_COLUMNS, Split
from models.detector import is_detector
from models.pareto import Variant, compare, distinct_names, on_front, pareto_command
from models.predictor import Predictor
from models.sources import ROOT, names, read_source


def variant(ms: float, accuracy: float) -> Variant:
    return Variant("", accuracy, 0.0, 0.0, 0.0, ms)


def test_the_front_holds_what_nothing_faster_beats() -> None:
    """Nor what is right as often and slower; two that are alike are both on it."""
    rows = [variant(0.2, 0.6), variant(0.3, 0.5), variant(0.4, 0.6), variant(0.5, 0.8), variant(0.5, 0.8)]
    assert [on_front(row, rows) for row in rows] == [True, False, False, True, True]


def test_files_of_one_name_are_told_apart() -> None:
    """Each file is a row of its own: by its stem, else by suffix, else by as many folders as it takes."""
    paths = ["a.onnx", "old/a.keras", "new/b.onnx", "old/b.onnx", "x/y/c.onnx", "z/y/c.onnx", "d.onnx"]
    names = distinct_names([Path(path) for path in paths])
    assert names == ["a.onnx", "a.keras", "new/b.onnx", "old/b.onnx", "x/y/c.onnx", "z/y/c.onnx", "d"]
    with pytest.raises(ValueError, match="once"):
        distinct_names([Path("a.onnx"), Path("./a.onnx")])


def test_a_mirrored_look_is_averaged_with_the_plain_one() -> None:
    """A network that only sees the left edge is right about a face lit from the right once it is mirrored."""

    def lit_left_is_happy(faces: np.ndarray) -> np.ndarray:
        lit = faces[:, 0, 0, 0] > 0
        probabilities = np.full((len(faces), 7), 0.02, np.float32)
        probabilities[~lit, 3], probabilities[~lit, 4] = 0.3, 0.6
        probabilities[lit, 3] = 0.88
        return probabilities

    images = np.zeros((2, 48, 48), np.uint8)
    images[0, :, -1] = 255
    images[1, :, 0] = 255
    votes = np.zeros((2, len(VOTE_COLUMNS)), np.uint8)
    votes[:, VOTE_COLUMNS.index("happiness")] = 10
    split = Split(images, np.array([3, 3]), votes, np.zeros(2, bool))
    rows = {
        row.name: row for row in compare({"edge": Predictor("edge", lit_left_is_happy, 48, 48, 1)}, split)
    }
    assert rows["edge"].ferplus_accuracy == pytest.approx(0.5)
    assert rows["edge + mirrored"].ferplus_accuracy == pytest.approx(1.0)


def test_the_example_names_emotion_models_only() -> None:
    """Each file of its command is one that `models convert` makes, and no face detector, which has no figures."""
    (command,) = re.findall(r"^ *(python -m models pareto .*)$", pareto_command.__doc__ or "", re.MULTILINE)
    outputs = {source.output: source for source in map(read_source, names()) if source.output}
    files = [ROOT / word for word in shlex.split(command) if word.endswith(".onnx")]
    assert len(files) == 2
    assert not any(is_detector(outputs[path]) for path in files)
