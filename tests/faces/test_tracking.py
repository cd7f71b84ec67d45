"""Following faces through a stream."""

from __future__ import annotations

import math
import random

import pytest

from service.faces.tracking import FORGET_S, FaceTracker

SAD, HAPPY = [1.0, 0.0], [0.0, 1.0]


def ids(tracker: FaceTracker, boxes: list[tuple[int, int, int, int]], moment: float) -> list[int | None]:
    """The ids of the faces of one frame."""
    return [found for found, _ in tracker.follow(boxes, [SAD] * len(boxes), moment)]


def test_a_face_keeps_its_id_while_it_moves_and_grows() -> None:
    """A third of its size per frame, in any direction, and 5 % larger each time."""
    tracker = FaceTracker()
    x, side = 0.0, 60.0
    for frame in range(50):
        assert ids(tracker, [(round(x), 100, round(side), round(side))], frame / 20) == [1]
        x, side = x + side / 3, side * 1.05


def test_two_faces_that_come_close_are_not_mixed_up() -> None:
    """They pass beside each other, in whatever order the detector lists them."""
    tracker, order = FaceTracker(), random.Random(1)
    assert ids(tracker, [(0, 0, 50, 50), (400, 60, 50, 50)], 0) == [1, 2]
    for frame in range(1, 40):
        faces = [((frame * 10, 0, 50, 50), 1), ((400 - frame * 10, 60, 50, 50), 2)]
        order.shuffle(faces)
        assert ids(tracker, [box for box, _ in faces], frame / 30) == [name for _, name in faces]


def test_a_face_that_is_not_seen_for_a_moment_is_the_same() -> None:
    """A blink of the detector does not end it; longer than that, it is a new face."""
    tracker = FaceTracker()
    assert ids(tracker, [(10, 10, 80, 80)], 0) == [1]
    assert ids(tracker, [], 0.5) == []
    assert ids(tracker, [(15, 10, 80, 80)], FORGET_S) == [1]
    assert ids(tracker, [(15, 10, 80, 80)], 2.1 + FORGET_S) == [2]


def test_a_face_elsewhere_or_of_another_size_is_another() -> None:
    """What jumps across the picture, or is three times as large, is not the same face."""
    tracker = FaceTracker()
    assert ids(tracker, [(10, 10, 80, 80)], 0) == [1]
    assert ids(tracker, [(300, 10, 80, 80)], 0.1) == [2]
    assert ids(tracker, [(220, -70, 240, 240)], 0.2) == [3]


@pytest.mark.parametrize(
    ("box", "same"),
    [
        ((170, 200, 100, 100), True),
        ((100, 130, 100, 100), True),
        ((185, 200, 100, 100), False),
        ((100, 285, 100, 100), False),
        ((100, 115, 100, 100), False),
        ((130, 220, 57, 57), True),
        ((170, 200, 70, 70), True),
        ((80, 150, 175, 175), True),
        ((120, 230, 52, 52), False),
        ((80, 150, 192, 192), False),
    ],
)
def test_a_face_moves_by_less_than_its_size_or_still_covers_what_it_did(
    box: tuple[int, int, int, int], same: bool
) -> None:
    """By 0.8 of its side at most; where it grows or shrinks by more than 1.6, a third of both is common."""
    tracker = FaceTracker()
    assert ids(tracker, [(100, 200, 100, 100)], 0) == [1]
    assert ids(tracker, [box], 0.1) == [1 if same else 2]


def test_a_face_is_the_nearest_of_those_that_it_may_be() -> None:
    """Though another lies within its reach, beside it or below it."""
    for first, second, one, other in (
        ((0, 0, 50, 50), (55, 0, 50, 50), (15, 0, 50, 50), (70, 0, 50, 50)),
        ((0, 0, 50, 50), (0, 55, 50, 50), (0, 15, 50, 50), (0, 70, 50, 50)),
    ):
        tracker = FaceTracker()
        assert ids(tracker, [first, second], 0) == [1, 2]
        assert ids(tracker, [other, one], 0.1) == [2, 1]


def test_a_face_that_is_left_alone_is_the_nearer_of_two() -> None:
    """The other, within whose reach it is too, is not seen any more."""
    tracker = FaceTracker()
    assert ids(tracker, [(0, 0, 50, 50), (55, 0, 50, 50)], 0) == [1, 2]
    assert ids(tracker, [(20, 0, 50, 50)], 0.1) == [1]


def test_every_face_of_a_frame_has_an_id_of_its_own() -> None:
    """Also where boxes are the same; ids are not used twice."""
    tracker = FaceTracker()
    seen: set[int | None] = set()
    for frame in range(100):
        found = ids(tracker, [(0, 0, 50, 50)] * 3 + [(frame * 997 % 4000, 500, 40, 40)], frame / 100)
        assert len(set(found)) == 4
        seen.update(found[3:])
    assert not seen & {1, 2, 3}


def test_what_is_remembered_is_bounded() -> None:
    """A stream of frames full of faces that are new each time does not pile up."""
    tracker = FaceTracker()
    for frame in range(50):
        ids(tracker, [(10_000 * frame + 100 * face, 0, 10, 10) for face in range(64)], frame / 1000)
    assert len(tracker._tracks) <= 128


def test_a_face_that_stays_is_remembered_before_those_that_have_passed() -> None:
    """It is the same however many pass behind it within the second for which each of them is expected back."""
    tracker, stays = FaceTracker(), (0, 0, 50, 50)
    for frame in range(30):
        passing = [(10_000 * frame + 100 * face, 500, 10, 10) for face in range(8)]
        assert ids(tracker, [stays, *passing], frame / 30)[0] == 1


@pytest.mark.parametrize("rate", [10, 100])
def test_smoothing_depends_on_time_and_not_on_the_frame_rate(rate: int) -> None:
    """After one time constant the new scores weigh 1 - 1/e, however many frames came; they still sum to 1."""
    tracker = FaceTracker()
    tracker.follow([(0, 0, 50, 50)], [SAD], 0, smoothing=0.5)
    for frame in range(1, rate // 2 + 1):
        ((_, scores),) = tracker.follow([(0, 0, 50, 50)], [HAPPY], frame / rate, smoothing=0.5)
    assert scores[1] == pytest.approx(1 - 1 / math.e, abs=1e-4)
    assert sum(scores) == pytest.approx(1, abs=1e-4)


def test_each_face_is_smoothed_by_itself_and_a_new_one_not_at_all() -> None:
    """Scores of one face do not leak into another's; without smoothing they are the model's own."""
    tracker = FaceTracker()
    tracker.follow([(0, 0, 50, 50)], [SAD], 0, smoothing=1.0)
    (_, first), (_, second) = tracker.follow(
        [(0, 0, 50, 50), (300, 0, 50, 50)], [HAPPY, HAPPY], 0.1, smoothing=1.0
    )
    assert first[0] > 0.8
    assert second == HAPPY
    assert tracker.follow([(0, 0, 50, 50)], [HAPPY], 0.2) == [(1, HAPPY)]


def test_a_frame_that_is_overtaken_does_not_turn_time_back() -> None:
    """One that took longer, in another executor: it adds nothing to what was said later, and that is remembered."""
    tracker, face = FaceTracker(), [(0, 0, 50, 50)]
    tracker.follow(face, [SAD], 0.2, smoothing=1.0)
    assert tracker.follow(face, [HAPPY], 0.0, smoothing=1.0) == [(1, SAD)]
    assert ids(tracker, face, 0.1 + FORGET_S) == [1]


def test_a_frame_that_is_overtaken_does_not_move_a_face_back() -> None:
    """Where the face is, the later frame has told; from there the next one goes on."""
    tracker = FaceTracker()
    for moment, x in ((0.0, 0), (0.2, 35), (0.1, 20), (0.3, 65)):
        assert ids(tracker, [(x, 0, 50, 50)], moment) == [1]


def test_a_whole_image_has_no_id_but_is_smoothed() -> None:
    """Cut-out faces, which have no box, are one face as far as smoothing goes."""
    tracker = FaceTracker()
    tracker.follow([None], [SAD], 0, smoothing=1.0)
    ((found, scores),) = tracker.follow([None], [HAPPY], 0.1, smoothing=1.0)
    assert found is None
    assert scores[0] > 0.8


def test_a_face_is_not_the_whole_image_in_which_none_was_found() -> None:
    """As a camera has it when somebody comes and goes: neither is smoothed by the other, and ids count faces only."""
    tracker, face = FaceTracker(), (0, 0, 50, 50)
    assert tracker.follow([None], [SAD], 0, smoothing=1.0) == [(None, SAD)]
    assert tracker.follow([face], [HAPPY], 0.1, smoothing=1.0) == [(1, HAPPY)]
    ((found, scores),) = tracker.follow([None], [SAD], 0.2, smoothing=1.0)
    assert (found, scores) == (None, SAD)
    assert ids(tracker, [face, (300, 0, 50, 50)], 0.3) == [1, 2]
