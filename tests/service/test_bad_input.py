"""Bad input over a real socket: each kind gets its error, and the connection lives on."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import orjson
import pytest

from tests.service.harness import FACE, PHOTO, Running, Serve, ask, predict_message
from tests.service.pictures import chunk, encode, pixels, with_orientation


async def answer(running: Running, message: str | bytes) -> dict[str, Any]:
    """The reply to a message, after which the same connection must still serve a good request."""
    async with running.client() as websocket:
        reply = await ask(websocket, message)
        assert (await ask(websocket, predict_message()))["emotion_name"] == "happy"
        return reply


async def error(running: Running, message: str | bytes, code: str) -> str:
    """The message of an error reply with this code."""
    reply = await answer(running, message)
    assert reply["type"] == "error"
    assert reply["status"] == "error"
    assert reply["code"] == code
    assert isinstance(reply["message"], str)
    return str(reply["message"])


async def test_invalid_json(running: Running) -> None:
    """Text that is not JSON."""
    await error(running, "predict please", "invalid_json")


async def test_a_message_that_is_not_an_object(running: Running) -> None:
    """JSON of another kind."""
    assert "array" in await error(running, '["predict"]', "invalid_request")


async def test_an_unknown_command(running: Running) -> None:
    """The error lists the commands that there are."""
    message = await error(running, '{"command": "train"}', "unknown_command")
    assert all(command in message for command in ("predict", "emotions", "model_info", "health"))


async def test_a_missing_image(running: Running) -> None:
    """The error names the field."""
    assert "'image'" in await error(running, '{"command": "predict"}', "invalid_request")


@pytest.mark.parametrize("value", [None, 5, ["aGk="], {"data": "aGk="}, True])
async def test_an_image_that_is_not_a_string(running: Running, value: object) -> None:
    """The error names the field."""
    message = orjson.dumps({"command": "predict", "image": value}).decode()
    assert "'image'" in await error(running, message, "invalid_request")


@pytest.mark.parametrize("image", ["this is not base64!", "_9j_", "/9j/4A"])
async def test_bad_base64(running: Running, image: str) -> None:
    """Characters outside the alphabet, another alphabet, no padding: the error says what is expected."""
    message = await error(running, orjson.dumps({"image": image}).decode(), "invalid_base64")
    assert "standard alphabet" in message
    assert "padded with =" in message


async def test_an_empty_image(running: Running) -> None:
    """An empty string is valid base64 of no image."""
    assert "empty" in await error(running, '{"image": ""}', "invalid_image")


async def test_an_empty_binary_frame(running: Running) -> None:
    """No bytes are no image."""
    assert "empty" in await error(running, b"", "invalid_image")


async def test_a_truncated_jpeg(running: Running) -> None:
    """Half a photo is refused, not guessed at."""
    assert "cut off" in await error(running, predict_message(PHOTO[: len(PHOTO) // 2]), "invalid_image")


async def test_a_text_file(running: Running) -> None:
    """A file that is no image at all."""
    assert "not an image" in await error(
        running, predict_message(b"Dear Sir or Madam,\n" * 20), "invalid_image"
    )


async def test_an_image_of_one_pixel(running: Running) -> None:
    """Too small to hold a face."""
    image = encode(np.zeros((1, 1, 3), np.uint8), ".png")
    assert "1 x 1" in await error(running, predict_message(image), "invalid_image")


async def test_a_png_bomb(running: Running) -> None:
    """20000 x 20000 pixels in a small file, refused by its header."""
    side = 20_000
    rows = zlib.compress(bytes(side * (side + 1)), 9)
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert len(bomb) < 500_000
    assert "20000 x 20000" in await error(running, predict_message(bomb), "image_too_large")


async def test_the_pixel_limit_is_a_setting(serve: Serve) -> None:
    """A photo over a small limit is refused, with the limit in the message."""
    async with serve(max_image_pixels=10_000) as running, running.client() as websocket:
        reply = await ask(websocket, predict_message(PHOTO))
        assert reply["code"] == "image_too_large"
        assert "10,000" in reply["message"]


async def test_a_16_bit_png(running: Running) -> None:
    """Read as the same face."""
    image = pixels().astype(np.uint16) * 257
    assert (await answer(running, predict_message(encode(image, ".png"))))["emotion_name"] == "happy"


async def test_a_png_with_alpha(running: Running) -> None:
    """Read as the same face."""
    image = cv2.cvtColor(pixels(), cv2.COLOR_BGR2BGRA)
    assert (await answer(running, predict_message(encode(image, ".png"))))["emotion_name"] == "happy"


async def test_a_webp(running: Running) -> None:
    """Read as the same face."""
    assert (await answer(running, predict_message(encode(pixels(), ".webp"))))["emotion_name"] == "happy"


async def test_a_photo_that_was_rotated_by_exif(running: Running) -> None:
    """A phone's sideways photo is answered as the upright one."""
    sideways = cv2.rotate(pixels(), cv2.ROTATE_90_COUNTERCLOCKWISE)
    jpeg = with_orientation(encode(sideways, ".jpg"), 6)
    upright = await answer(running, predict_message(encode(pixels(), ".jpg")))
    turned = await answer(running, predict_message(jpeg))
    assert turned["emotion_name"] == upright["emotion_name"] == "happy"
    assert turned["confidence"] == pytest.approx(upright["confidence"], abs=0.05)


async def test_one_bad_image_does_not_fail_its_batch(serve: Serve) -> None:
    """Good and bad images that wait together are each answered their own."""
    async with serve(executors=1, max_in_flight=200) as running, running.client() as websocket:
        for number in range(100):
            image = b"broken" if number % 3 == 0 else FACE
            await websocket.send(predict_message(image, id=number))
        for number in range(100):
            reply = orjson.loads(await websocket.recv())
            assert reply["id"] == number
            assert reply["type"] == ("error" if number % 3 == 0 else "prediction")


async def test_base64_with_line_breaks_is_accepted(running: Running) -> None:
    """Android's default encoder breaks lines."""
    image = base64.encodebytes(FACE).decode()
    assert (await answer(running, orjson.dumps({"image": image}).decode()))["emotion_name"] == "happy"
