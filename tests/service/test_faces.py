"""Faces through the service: found, cut out, scored each, stored each."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from tests.service.harness import FACE, PHOTO, TIMEOUT, Running, Serve, ask, predict_message
from tests.service.pictures import encode, pixels, with_orientation

Pixels = npt.NDArray[np.uint8]


def jpeg(image: Pixels) -> bytes:
    """The image as a JPEG file."""
    return encode(image, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 92)


def overlap(one: list[int], other: list[int]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


# Where the face is in the photo of 512 x 512 pixels, looked up by eye: x, y, width, height.
FACE_BOX = [178, 80, 94, 94]


async def predict(running: Running, image: bytes, **fields: Any) -> dict[str, Any]:
    """The reply to one image."""
    async with running.client() as websocket:
        return await ask(websocket, predict_message(image, **fields))


async def test_a_face_in_a_photo_is_found_and_scored(running: Running) -> None:
    """The box is in pixels of the photo, and v1's fields tell of that face."""
    reply = await predict(running, PHOTO)
    assert reply["face_detected"] is True
    (face,) = reply["faces"]
    assert overlap(face["box"], FACE_BOX) > 0.6
    assert 0.5 < face["detection_score"] <= 1
    assert reply["emotion_name"] == face["emotion_name"] == "happy"
    assert reply["confidence"] == face["confidence"]
    assert reply["probabilities"] == face["probabilities"]
    assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-5)


async def test_boxes_are_in_pixels_of_the_sent_image(running: Running) -> None:
    """A photo that is decoded at reduced scale has its boxes at full scale."""
    large = cv2.resize(pixels(PHOTO), (2560, 2560), interpolation=cv2.INTER_CUBIC)
    reply = await predict(running, jpeg(np.asarray(large, np.uint8)), max_faces=1)
    assert overlap(reply["faces"][0]["box"], [5 * value for value in FACE_BOX]) > 0.6


async def test_a_rotated_photo_has_its_boxes_upright(running: Running) -> None:
    """A phone's sideways photo is answered as a viewer shows it."""
    sideways = jpeg(np.asarray(cv2.rotate(pixels(PHOTO), cv2.ROTATE_90_COUNTERCLOCKWISE), np.uint8))
    assert overlap((await predict(running, with_orientation(sideways, 6)))["faces"][0]["box"], FACE_BOX) > 0.6


async def test_a_gray_photo_is_searched_too(running: Running) -> None:
    """Colour is not needed."""
    gray = np.asarray(cv2.cvtColor(pixels(PHOTO), cv2.COLOR_BGR2GRAY), np.uint8)
    assert overlap((await predict(running, jpeg(gray)))["faces"][0]["box"], FACE_BOX) > 0.6


async def test_a_face_partly_outside_the_image_is_found(running: Running) -> None:
    """Its box ends at the image's edge."""
    reply = await predict(running, jpeg(pixels(PHOTO)[:, 210:].copy()))
    x, _, width, _ = reply["faces"][0]["box"]
    assert x == 0
    assert width < 80


async def test_several_faces_come_largest_first(running: Running) -> None:
    """Each with its own box and scores; the first is the one that v1's fields tell of."""
    near = pixels(PHOTO)[40:220, 130:310]
    canvas = np.full((180, 300, 3), 127, np.uint8)
    canvas[:, :180] = near
    canvas[30:150, 180:] = cv2.resize(near, (120, 120), interpolation=cv2.INTER_AREA)
    reply = await predict(running, jpeg(canvas))
    first, second = reply["faces"]
    assert first["box"][2] * first["box"][3] > second["box"][2] * second["box"][3]
    assert first["box"][0] < 180 < second["box"][0]
    assert reply["emotion_name"] == first["emotion_name"]
    reply = await predict(running, jpeg(canvas), max_faces=1)
    assert len(reply["faces"]) == 1
    assert reply["faces"][0]["box"] == first["box"]


async def test_many_small_faces_in_a_large_photo_are_found(running: Running) -> None:
    """What a look at the whole image misses, tiles show: sixteen faces of 50 pixels among 1400."""
    small = cv2.resize(pixels(PHOTO)[:256, 96:352], (140, 140), interpolation=cv2.INTER_AREA)
    canvas = np.full((1000, 1400, 3), 110, np.uint8)
    for row in range(4):
        for column in range(4):
            y, x = 60 + row * 230, 80 + column * 330
            canvas[y : y + 140, x : x + 140] = small
    reply = await predict(running, jpeg(canvas), max_faces=32)
    assert len(reply["faces"]) == 16
    assert {face["emotion_name"] for face in reply["faces"]} == {"happy"}


async def test_a_distant_face_in_a_webcam_frame_is_found(running: Running) -> None:
    """One face of 45 pixels in 640: too small for the first look, not for the second."""
    canvas = np.full((480, 640, 3), 110, np.uint8)
    canvas[150:290, 250:390] = cv2.resize(
        pixels(PHOTO)[:290, 90:380], (140, 140), interpolation=cv2.INTER_AREA
    )
    (face,) = (await predict(running, jpeg(canvas)))["faces"]
    assert overlap(face["box"], [292, 188, 45, 45]) > 0.5


async def test_without_a_face_auto_scores_the_whole_image(running: Running) -> None:
    """The reply says that none was found."""
    ramp = np.broadcast_to(np.linspace(0, 255, 300, dtype=np.uint8)[:, None, None], (300, 300, 3)).copy()
    reply = await predict(running, jpeg(ramp))
    assert reply["status"] == "success"
    assert reply["face_detected"] is False
    assert reply["faces"] == []


async def test_without_a_face_always_is_an_error(running: Running) -> None:
    """no_face, and the connection lives on."""
    ramp = np.broadcast_to(np.linspace(0, 255, 300, dtype=np.uint8)[:, None, None], (300, 300, 3)).copy()
    async with running.client() as websocket:
        reply = await ask(websocket, predict_message(jpeg(ramp), detect="always", id=4))
        assert (reply["code"], reply["id"]) == ("no_face", 4)
        assert (await ask(websocket, predict_message(PHOTO, detect="always")))["face_detected"] is True


async def test_never_takes_the_image_as_a_face(running: Running) -> None:
    """No search, no box; the same answer as the crop alone gives."""
    reply = await predict(running, FACE, detect="never")
    assert reply["face_detected"] is False
    assert reply["faces"] == []
    assert reply["emotion_name"] == "happy"


async def test_a_small_image_is_taken_as_a_face_that_was_cut_out(running: Running) -> None:
    """Clients that send crops of 48 to 100 pixels are answered as before there was a detector."""
    crop = jpeg(np.asarray(cv2.resize(pixels(FACE), (64, 64), interpolation=cv2.INTER_AREA), np.uint8))
    auto = await predict(running, crop)
    never = await predict(running, crop, detect="never")
    assert auto["face_detected"] is False
    # Decoded at full size or at a libjpeg scale: the pixels differ by rounding.
    assert auto["probabilities"] == pytest.approx(never["probabilities"], abs=0.02)


async def test_detection_can_be_configured_for_the_connection(running: Running) -> None:
    """configure sets what requests that do not say get."""
    async with running.client() as websocket:
        reply = await ask(websocket, '{"command": "configure", "detect": "never", "max_faces": 3}')
        assert (reply["configuration"]["detect"], reply["configuration"]["max_faces"]) == ("never", 3)
        assert (await ask(websocket, predict_message(PHOTO)))["face_detected"] is False
        assert (await ask(websocket, predict_message(PHOTO, detect="auto")))["face_detected"] is True


async def test_the_default_is_a_setting(serve: Serve) -> None:
    """A deployment whose clients all send crops saves the search."""
    async with serve(detect="never") as running:
        assert (await predict(running, PHOTO))["face_detected"] is False


async def test_each_face_is_a_row(serve: Serve, database: str) -> None:
    """The faces of one image share its prediction_id and are told apart by their index and box."""
    photo = pixels(PHOTO)[:300, 100:400]
    async with serve() as running:
        reply = await predict(running, jpeg(np.concatenate([photo, photo], axis=1)))
    assert len(reply["faces"]) == 2
    with closing(sqlite3.connect(database.removeprefix("sqlite:///"))) as connection:
        rows = connection.execute(
            "SELECT face_index, face_box, prediction_uuid FROM predictions_log ORDER BY face_index"
        ).fetchall()
    assert [row[0] for row in rows] == [0, 1]
    assert len({row[2] for row in rows}) == 1
    assert rows[0][2].replace("-", "") == reply["prediction_id"].replace("-", "")


async def test_in_a_stream_faces_carry_an_id_that_follows_them(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two largest faces keep their ids while both move; outside of a stream there are none."""
    # A busy machine may take longer than a second for a frame.
    monkeypatch.setattr("service.faces.tracking.FORGET_S", TIMEOUT)
    photo = pixels(PHOTO)
    async with running.client() as websocket:
        await ask(websocket, '{"command": "configure", "stream": true}')
        seen: list[list[int]] = []
        for shift in range(0, 40, 10):
            picture = np.zeros((512, 1100, 3), np.uint8)
            picture[:, shift : shift + 512] = photo
            picture[:, 588 - shift : 1100 - shift] = photo[:, ::-1]
            reply = await ask(websocket, jpeg(picture))
            left, right = sorted(reply["faces"][:2], key=lambda face: face["box"][0])
            seen.append([left["face_id"], right["face_id"]])
        assert seen == [seen[0]] * 4
        assert len(set(seen[0])) == 2
        await ask(websocket, '{"command": "configure", "stream": false}')
        assert "face_id" not in (await ask(websocket, PHOTO))["faces"][0]


async def test_smoothing_changes_the_reply_and_not_what_is_stored(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a long time constant a new picture hardly moves the probabilities; its row has the model's own."""
    monkeypatch.setattr("service.faces.tracking.FORGET_S", TIMEOUT)
    async with running.client() as websocket:
        await ask(
            websocket, '{"command": "configure", "stream": true, "detect": "never", "smoothing_ms": 1e9}'
        )
        first = await ask(websocket, FACE)
        noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
        second = await ask(websocket, jpeg(noise))
        assert second["probabilities"] == pytest.approx(first["probabilities"], abs=1e-4)
        while (history := await ask(websocket, '{"command": "history"}'))["pending"]:
            await asyncio.sleep(0.01)
        stored_second, stored_first = history["predictions"]
        assert stored_first["confidence"] == pytest.approx(first["confidence"], abs=1e-5)
        assert stored_second["confidence"] != pytest.approx(second["confidence"], abs=1e-5)
