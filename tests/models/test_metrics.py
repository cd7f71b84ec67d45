import numpy as np
import pytest

from models.dataset import VOTE_COLUMNS, Split
from models.evaluate import evaluate
from models.metrics import (
    accuracy,
    class_figures,
    confusion_matrix,
    cross_entropy,
    expected_calibration_error,
)


def certain(classes: list[int], k: int = 7) -> np.ndarray:
    """Probabilities of one for the given classes."""
    return np.eye(k, dtype=np.float32)[classes]


def test_confusion_counts_true_classes_in_rows_and_predictions_in_columns() -> None:
    """A face of class 0 taken for class 2 is counted at row 0, column 2."""
    confusion = confusion_matrix(certain([2, 1, 1], k=3), np.array([0, 1, 1]))
    assert confusion.tolist() == [[0, 0, 1], [0, 2, 0], [0, 0, 0]]


def test_class_figures_follow_their_definitions() -> None:
    """Precision is hits over predictions, recall hits over true rows, F1 their harmonic mean."""
    first, second = class_figures(np.array([[3, 1], [2, 4]]))
    assert (first.precision, first.recall, first.n) == (0.6, 0.75, 4)
    assert first.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35)
    assert (second.precision, second.n) == (0.8, 6)


def test_a_class_that_never_occurs_scores_zero_instead_of_failing() -> None:
    """A class absent from truth and predictions divides by nothing."""
    figures = class_figures(np.array([[2, 0], [0, 0]]))[1]
    assert (figures.precision, figures.recall, figures.f1, figures.n) == (0.0, 0.0, 0.0, 0)


def test_accuracy_is_the_share_of_hits() -> None:
    """Three of four right is 0.75."""
    assert accuracy(certain([0, 1, 2, 3]), np.array([0, 1, 2, 6])) == 0.75


def test_cross_entropy_has_a_number_for_what_is_all_but_impossible() -> None:
    """A class that is 500 behind loses 500, one that is level with another the logarithm of two."""
    logits = np.array([[0, -500], [3, 3]], np.float32)
    for same in (logits, logits.astype(np.float64)):
        assert cross_entropy(same[:1], np.array([1])) == 500
        assert cross_entropy(same, np.array([1, 0])) == pytest.approx((500 + np.log(2)) / 2)


def test_calibration_error_of_a_worked_example() -> None:
    """Two bins: 4 rows at 0.9 with 3 right, 2 rows at 0.6 with both right: (4*0.15 + 2*0.4) / 6."""
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2, np.float32)
    truth = np.array([0, 0, 0, 1, 0, 0])
    assert expected_calibration_error(probabilities, truth) == pytest.approx(
        (4 * 0.15 + 2 * 0.4) / 6, abs=1e-6
    )


def test_full_confidence_that_is_always_right_is_perfectly_calibrated() -> None:
    """A confidence of exactly one belongs to the last bin, not beyond it."""
    assert expected_calibration_error(certain([0, 1, 2]), np.array([0, 1, 2])) == 0


def test_evaluation_leaves_out_duplicates_and_rows_without_truth() -> None:
    """FER+ figures are over clear, fresh rows; FER2013's over all fresh rows."""
    votes = np.zeros((4, 10), np.uint8)
    votes[0, VOTE_COLUMNS.index("happiness")] = 9
    votes[1, VOTE_COLUMNS.index("sadness")] = 9
    votes[2, VOTE_COLUMNS.index("anger")] = 9
    votes[3, VOTE_COLUMNS.index("contempt")] = 9
    split = Split(
        images=np.zeros((4, 48, 48), np.uint8),
        labels=np.array([3, 4, 0, 0]),
        votes=votes,
        duplicate=np.array([False, False, True, False]),
    )
    result = evaluate(certain([3, 4, 5, 0]), split, ms_per_face=1.0)
    assert (result.n, result.ferplus_accuracy, result.fer2013_accuracy) == (2, 0.5, 1.0)
    assert result.confusion[5][4] == 1
    assert result.per_class["happy"].recall == 1
