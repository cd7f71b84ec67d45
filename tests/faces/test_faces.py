"""The detector's arithmetic, on numbers that can be checked by hand, and its crops."""

from __future__ import annotations

import math
import tracemalloc

import cv2
import numpy as np
import pytest

from service.faces import Face, FaceDetector, crop_face
from service.faces.decode import Floats, anchors, decode_detections, suppress, to_faces, unletterbox
from service.faces.detector import Pixels, _around, _cut, _Look
from tests.service.harness import ROOT


def test_anchors_are_cell_centres_in_row_order() -> None:
    """BlazeFace short range: 16x16 cells with 2 anchors, then 8x8 with 6."""
    centres = anchors(128, ((8, 2), (16, 6)))
    assert centres.shape == (896, 2)
    np.testing.assert_allclose(centres[:4], [[0.03125, 0.03125]] * 2 + [[0.09375, 0.03125]] * 2)
    np.testing.assert_allclose(centres[512:518], [[0.0625, 0.0625]] * 6)
    np.testing.assert_allclose(centres[-1], [0.9375, 0.9375])


def test_a_detection_is_its_anchor_and_offsets() -> None:
    """Box centre and size in pixels of the input, relative to the anchor; the score is a sigmoid."""
    raw = np.zeros((2, 16), np.float32)
    raw[1, :4] = [12.8, -12.8, 25.6, 51.2]
    raw[1, 4:6] = [6.4, 6.4]
    centres = np.array([[0.1, 0.1], [0.5, 0.5]], np.float32)
    points, scores = decode_detections(raw, np.array([-5, 2], np.float32), centres, 128, 0.5)
    assert points.shape == (1, 8, 2)
    np.testing.assert_allclose(points[0, :3], [[0.5, 0.2], [0.7, 0.6], [0.55, 0.55]], atol=1e-6)
    assert scores[0] == pytest.approx(1 / (1 + math.exp(-2)))


def test_detections_above_a_score_come_best_first() -> None:
    """Each with its own box."""
    centres = np.array([[0.1, 0.1], [0.3, 0.3], [0.5, 0.5], [0.7, 0.7]], np.float32)
    logits = np.array([1.5, 3, 1.3, 2], np.float32)  # 0.8 is 1.386
    points, scores = decode_detections(np.zeros((4, 16), np.float32), logits, centres, 128, 0.8)
    np.testing.assert_allclose(points[:, 0, 0], [0.3, 0.7, 0.1], atol=1e-6)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp([-3, -2, -1.5])), atol=1e-6)


def test_nothing_above_the_score_is_nothing() -> None:
    """An image without a face gives empty arrays of the right shape."""
    points, scores = decode_detections(
        np.zeros((5, 16), np.float32), np.full(5, -9, np.float32), np.zeros((5, 2), np.float32), 128, 0.5
    )
    assert points.shape == (0, 8, 2)
    assert scores.shape == (0,)
    assert to_faces(*suppress(points, scores), 10, 10) == []


def _square(x: float, y: float, side: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    points = np.full((8, 2), (x + side / 2, y + side / 2), np.float32)
    points[0], points[1] = (x, y), (x + side, y + side)
    return points


def test_overlapping_detections_become_one_weighted_by_score() -> None:
    """Two of one face are averaged; one far away stays, beside it or across; one that touches stays."""
    corners = [(0, 0), (1, 0), (50, 0), (10, 0), (50, 50)]
    points = np.stack([_square(x, y, 10) for x, y in corners])
    merged, scores = suppress(points, np.array([0.9, 0.6, 0.8, 0.7, 0.65], np.float32))
    assert len(merged) == 4
    np.testing.assert_allclose(merged[0, 0], [0.4, 0.0], atol=1e-6)
    np.testing.assert_allclose(scores, [0.9, 0.8, 0.7, 0.65])


@pytest.mark.parametrize(("distance", "faces"), [(5.0, 1), (5.5, 2)])
def test_faces_that_overlap_by_little_are_two(distance: float, faces: int) -> None:
    """Two that share a third of what they cover are one, and two that share 0.29 of it are not."""
    points = np.stack([_square(0, 0, 10), _square(distance, 0, 10)])
    assert len(suppress(points, np.array([0.9, 0.8], np.float32))[0]) == faces


def test_a_box_without_a_size_is_no_face() -> None:
    """A network may say so of anything; it takes nothing from the others."""
    points = np.stack([_square(5, 5, 0), _square(0, 0, 10)])
    faces = to_faces(*suppress(points, np.array([0.9, 0.8], np.float32)), 100, 100)
    assert [face.box for face in faces] == [(0, 0, 10, 10)]


def test_boxes_are_clipped_and_sorted_by_size() -> None:
    """Largest first, in whole pixels; what lies wholly outside the image, on whichever side, is no face in it."""
    corners = [(-5, -5, 10), (20.4, 19.6, 60.7), (200, 20, 30), (20, 200, 30), (-40, 20, 30), (20, -40, 30)]
    points = np.stack([_square(x, y, side) for x, y, side in [*corners, (85, 50, 8)]])
    faces = to_faces(points, np.linspace(0.9, 0.4, 7, dtype=np.float32), 100, 70)
    assert [face.box for face in faces] == [(20, 20, 61, 50), (85, 50, 8, 8), (0, 0, 5, 5)]
    assert all(isinstance(number, int) for face in faces for number in face.box)


def test_points_map_back_through_a_letterbox() -> None:
    """A 200x100 image in a square input: the middle stays the middle."""
    points = unletterbox(np.array([[[0.5, 0.5], [0.0, 0.25]]], np.float32), (200, 200), (0.0, 0.25))
    np.testing.assert_allclose(points, [[[100, 50], [0, 0]]], atol=1e-4)


def _face(box: tuple[int, int, int, int], tilt: float = 0.0) -> Face:
    x, y, w, h = box
    centre = np.array([x + w / 2, y + h / 2], np.float32)
    along = np.array([math.cos(tilt), math.sin(tilt)], np.float32) * w / 4
    keypoints = np.tile(centre, (6, 1)).astype(np.float32)
    keypoints[0], keypoints[1] = centre - along, centre + along
    return Face(box, 0.9, keypoints)


@pytest.mark.parametrize("degrees", [0, 20, -30])
def test_a_tilted_face_is_cut_out_upright(degrees: float) -> None:
    """A line through the eyes is level in the crop."""
    image = np.zeros((300, 300), np.uint8)
    tilt = math.radians(degrees)
    along = np.array([math.cos(tilt), math.sin(tilt)]) * 60
    start, end = np.array([150, 150]) - along, np.array([150, 150]) + along
    cv2.line(image, tuple(map(int, start)), tuple(map(int, end)), 255, 5)
    crop = crop_face(image, _face((90, 90, 120, 120), tilt), 64, 64)
    rows = np.flatnonzero(crop.mean(axis=1) > 60)
    assert 1 <= len(rows) <= 6


@pytest.mark.parametrize("size", [64, 16])
@pytest.mark.parametrize("box", [(100, 60, 40, 50), (100, 60, 50, 40), (5, 3, 40, 50), (210, 150, 40, 50)])
@pytest.mark.parametrize(("tilt", "turned"), [(0, 0), (30, 30), (-30, -30), (60, 0), (-150, 0)])
def test_a_crop_is_a_square_around_the_face_along_its_eyes(
    tilt: int, turned: int, box: tuple[int, int, int, int], size: int
) -> None:
    """In longer sides of its box 1.2 wide and 0.5 above its middle; not turned where the eyes are hardly right."""
    # Each pixel says where it is.
    rows, columns = np.mgrid[:200, :250]
    image = np.stack([columns, rows, rows], axis=2).astype(np.uint8)
    crop = crop_face(image, _face(box, math.radians(tilt)), size, size, scale=1.2, lift=0.5).astype(float)
    x, y, w, h = box
    across = ((np.arange(size) + 0.5) / size - 0.5) * 60
    u, v = np.meshgrid(across, across)
    cos, sin = math.cos(math.radians(turned)), math.sin(math.radians(turned))
    there = [
        np.clip(x + w / 2 + u * cos - v * sin, 0, 249),
        np.clip(y + h / 2 - 25 + u * sin + v * cos, 0, 199),
    ]
    half = 0.5 * (1 + 60 / size)  # of a pixel there and of one here
    np.testing.assert_allclose(crop[:, :, :2], np.stack(there, axis=2), atol=half + 1)


def test_a_face_at_the_edge_is_filled_with_the_edge() -> None:
    """No black bars that the network never saw."""
    image = np.full((100, 100, 3), 77, np.uint8)
    for box in ((0, 0, 50, 50), (60, 70, 40, 30), (0, 0, 100, 100)):
        crop = crop_face(image, _face(box), 48, 48)
        assert crop.shape == (48, 48, 3)
        assert (crop == 77).all()


@pytest.mark.parametrize(("width", "height"), [(20_000, 8), (8, 20_000)])
def test_a_long_face_in_a_thin_image_takes_little_memory(width: int, height: int) -> None:
    """The square around it is many times the image, and is never made."""
    image = np.full((height, width), 77, np.uint8)
    tracemalloc.start()
    try:
        crop = crop_face(image, _face((0, 0, width, height)), 48, 48)
        assert tracemalloc.get_traced_memory()[1] < image.nbytes
    finally:
        tracemalloc.stop()
    assert crop.shape == (48, 48)
    assert (crop == 77).all()


def test_tiny_and_huge_faces_are_cut_out_to_size() -> None:
    """From a few pixels up, and from thousands down."""
    image = np.random.default_rng(0).integers(0, 256, (3000, 3000), np.uint8)
    for side in (1, 7, 2900):
        crop = crop_face(image, _face((20, 20, side, side)), 64, 64)
        assert crop.shape == (64, 64)
    assert crop.std() < 10  # the noise is averaged, and not sampled


@pytest.mark.parametrize("size", [(9, 9), (9, 900), (900, 9), (100, 2000), (8, 20480), (20480, 8)])
def test_images_of_any_shape_can_be_searched(detector: FaceDetector, size: tuple[int, int]) -> None:
    """However small or thin."""
    image = np.random.default_rng(1).integers(0, 256, size, np.uint8)
    assert detector.detect(image, 4) == []


def test_the_keypoints_are_where_they_belong(detector: FaceDetector) -> None:
    """Eyes above the nose above the mouth, the subject's right eye on the left of the picture."""
    photo = cv2.imread(str(ROOT / "tests/data/astronaut.jpg"))
    assert photo is not None
    (face,) = detector.detect(np.ascontiguousarray(photo[:, :, ::-1]), 5)
    right_eye, left_eye, nose, mouth = face.keypoints[:4]
    assert right_eye[0] < nose[0] < left_eye[0] + 5
    assert max(right_eye[1], left_eye[1]) < nose[1] < mouth[1]


@pytest.mark.parametrize(
    "look", [_Look(-90, 10, 60), _Look(10, 200, 60), _Look(99.6, 10, 0.3), _Look(50, 50, 0)]
)
def test_a_look_beside_the_image_is_black(look: _Look) -> None:
    """What shows nothing of the image is black, as what lies outside of it is."""
    assert not _cut(np.full((100, 100, 3), 255, np.uint8), look, 128).any()


@pytest.mark.parametrize("colour", ["RGB", "gray"])
@pytest.mark.parametrize("side", [810, 960, 1024, 1280, 2048])
def test_clothes_of_a_large_portrait_are_no_faces(detector: FaceDetector, side: int, colour: str) -> None:
    """A portrait has one face at any size, whatever its collar looks like in close-up."""
    photo = cv2.imread(str(ROOT / "tests/data/astronaut.jpg"))
    assert photo is not None
    code = cv2.COLOR_BGR2RGB if colour == "RGB" else cv2.COLOR_BGR2GRAY
    image = cv2.resize(cv2.cvtColor(photo, code), (side, side), interpolation=cv2.INTER_CUBIC)
    (face,) = detector.detect(np.asarray(image, np.uint8), 8)
    assert face.score > 0.8
    assert face.box[2] > side / 7


def test_a_near_face_half_covered_is_still_found(detector: FaceDetector) -> None:
    """What is asked of faces beside a near one is not asked of the near one, though it is not sure itself."""
    photo = cv2.imread(str(ROOT / "tests/data/astronaut.jpg"), cv2.IMREAD_GRAYSCALE)
    assert photo is not None
    photo[119:194] = 0
    image = cv2.resize(photo[60:240, 140:310], (944, 1000), interpolation=cv2.INTER_CUBIC)
    (face,) = detector.detect(np.asarray(image, np.uint8), 8)
    assert face.score < 0.8
    assert face.box[2] > 500


@pytest.mark.parametrize("x", [20, 880])
def test_a_small_face_beside_a_near_one_is_found_on_either_side(detector: FaceDetector, x: int) -> None:
    """Somebody in the shade, of whom the first network is not sure: the mirrored look is at the same face."""
    photo = cv2.imread(str(ROOT / "tests/data/astronaut.jpg"))
    assert photo is not None
    image = cv2.resize(photo[:, :, ::-1], (1000, 1000), interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(photo[2:258, 96:352, ::-1], (100, 100), interpolation=cv2.INTER_AREA)
    image[20:120, x : x + 100] = small // 4
    near, far = detector.detect(np.asarray(image[:800], np.uint8), 8)
    assert near.box[2] > 150
    assert far.score < 0.8
    assert far.box[2] < 60
    assert x < far.box[0] < x + 100
    assert 20 < far.box[1] < 120


def _frame() -> Pixels:
    """A gray 1280x720 frame without anybody."""
    return np.full((720, 1280), 120, np.uint8)


def _covered(side: int, tilt: float = 0.0) -> Pixels:
    """A face with its brow covered: hard to see. Square, gray."""
    photo = _portrait()
    photo[119:150] = 0
    turned = cv2.warpAffine(photo, cv2.getRotationMatrix2D((225, 128), tilt, 1.0), (512, 512))
    face = cv2.resize(turned[78:178, 175:275], (side, side), interpolation=cv2.INTER_CUBIC)
    return np.asarray(face, np.uint8)


def _portrait() -> Pixels:
    photo = cv2.imread(str(ROOT / "tests/data/astronaut.jpg"), cv2.IMREAD_GRAYSCALE)
    assert photo is not None
    return np.asarray(photo, np.uint8)


def _paste(frame: Pixels, face: Pixels, x: int, y: int) -> None:
    frame[y : y + face.shape[0], x : x + face.shape[1]] = face


@pytest.mark.parametrize(("side", "x"), [(180, 800), (200, 960)])
def test_a_face_too_large_for_tiles_and_too_hard_for_one_look_is_found(
    detector: FaceDetector, side: int, x: int
) -> None:
    """The network that sees it in a small frame is asked in a large one, too."""
    frame = _frame()
    _paste(frame, _covered(side), x, 150)
    (face,) = detector.detect(frame, 16)
    assert face.box[2] > side / 2
    assert x - side / 4 < face.box[0] < x + side / 2


@pytest.mark.parametrize(
    ("setting", "faces"), [("auto", [0, 1, 1]), ("always", [1, 1, 1]), ("never", [0, 0, 0])]
)
def test_how_far_small_faces_are_looked_for_is_a_setting(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch, setting: str, faces: list[int]
) -> None:
    """In tiles of a small and of a large image, and by a second look where the first sees nobody."""
    monkeypatch.setattr(detector, "_small_faces", setting)
    far, near = _frame(), _frame()
    _paste(far, np.asarray(cv2.resize(_portrait()[:300, 90:390], (130, 130)), np.uint8), 500, 200)
    _paste(near, _covered(180), 800, 150)
    assert [len(detector.detect(image, 16)) for image in (far[:, :800], far, near)] == faces


def test_what_was_whole_in_a_tile_is_no_face_of_the_last_look(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where tiles show nobody either, the second network is believed in what a tile may have cut."""

    def nobody(_: Pixels, looks: list[_Look], __: float) -> list[tuple[Floats, Floats]]:
        return [(np.empty((0, 8, 2), np.float32), np.empty(0, np.float32)) for _ in looks]

    def two(*_: object) -> list[tuple[Floats, Floats]]:
        faces = np.stack([_square(100, 100, 2 * 74), _square(900, 300, 2 * 78)])
        return [(faces, np.full(2, 0.9, np.float32))]

    monkeypatch.setattr(detector._network, "look", nobody)
    monkeypatch.setattr(detector._second, "look", two)
    large = detector.detect(np.full((1440, 2560), 120, np.uint8), 16)  # tiles are of half of it
    assert [face.box for face in large] == [(900, 300, 156, 156)]


@pytest.mark.parametrize(
    ("larger", "smaller"), [((300, 300, 300), (1100, 100, 400)), ((900, 100, 300), (100, 100, 200))]
)
def test_the_largest_face_of_those_that_tiles_show_is_the_one_asked_for(
    detector: FaceDetector,
    monkeypatch: pytest.MonkeyPatch,
    larger: tuple[int, int, int],
    smaller: tuple[int, int, int],
) -> None:
    """By what the image has of it, wherever it is; the score is the best of what tiles say, and a sure one suffices."""
    faces = np.stack([_square(*smaller), _square(*larger), _square(*larger)])
    scores = np.array([0.9, 0.7, 0.95], np.float32)

    def in_one_tile(_: Pixels, looks: list[_Look], __: float) -> list[tuple[Floats, Floats]]:
        return [
            (faces, scores) if 0 < index == len(looks) - 1 else (faces[:0], scores[:0])
            for index in range(len(looks))
        ]

    monkeypatch.setattr(detector._network, "look", in_one_tile)
    (only,) = detector.detect(_frame(), 1)
    x, y, side = larger
    assert only.box == (x, y, side, side)
    assert only.score == pytest.approx(0.95)


def test_a_look_around_a_face_has_it_in_its_middle() -> None:
    """As a multiple of its longer side."""
    face = _square(100, 50, 20)
    face[1, 1] = 60
    assert _around(face, 3.0) == _Look(80, 25, 60)


@pytest.mark.parametrize(("side", "x", "tilt"), [(220, 180, 25), (260, 80, 50)])
def test_the_one_face_asked_for_is_the_largest(
    detector: FaceDetector, side: int, x: int, tilt: float
) -> None:
    """Somebody whom the first look shows is not answered for a larger one, whom only tiles show."""
    frame = _frame()
    _paste(frame, _covered(side, tilt), x, 300)
    clear = cv2.resize(_portrait()[60:196, 157:293], (272, 272), interpolation=cv2.INTER_CUBIC)
    _paste(frame, np.asarray(clear, np.uint8), 800, 100)
    first, second = detector.detect(frame, 16)
    assert first.box[0] < 400 < 800 < second.box[0]
    (only,) = detector.detect(frame, 1)
    assert only.box == first.box


def test_the_box_of_a_near_face_is_not_drawn_towards_what_tiles_show_of_it(detector: FaceDetector) -> None:
    """What is larger than a tile has the box of the look at all of the image."""
    frame = _frame()
    _paste(frame, _covered(260), 160, 300)
    (whole,) = detector.detect(frame, 1)
    assert whole.box[2] > 256
    assert detector.detect(frame, 16)[0].box == whole.box


def test_doubtful_faces_are_asked_about_no_further_than_they_are_wanted(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants two faces of a crowd does not wait for a second look at all of it, and gets the first of all."""
    asked: list[object] = []
    ask = detector._second_score

    def counted(image: Pixels, face: Floats, factors: tuple[float, ...]) -> float:
        asked.append(face)
        return ask(image, face, factors)

    monkeypatch.setattr(detector, "_second_score", counted)
    dim = cv2.resize(_portrait()[40:190, 150:300], (76, 76), interpolation=cv2.INTER_AREA) // 4 + 60
    crowd = np.asarray(np.tile(dim, (8, 12)), np.uint8)
    everybody = detector.detect(crowd, 64)
    assert len(everybody) > 40
    assert len(asked) > 40
    asked.clear()
    assert [face.box for face in detector.detect(crowd, 2)] == [face.box for face in everybody[:2]]
    assert len(asked) < 10


def test_no_box_leaves_the_image() -> None:
    """Wherever its corners lie: a half is rounded to an even number, up or down."""
    for x in np.arange(90, 100, 0.5):
        (face,) = to_faces(_square(x, x + 20, 40)[None], np.ones(1, np.float32), 101, 121)
        left, top, width, height = face.box
        assert left + width <= 101
        assert top + height <= 121
