"""JPEGs that libjpeg complains of: what is worth an answer, and what is not."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from service.errors import InvalidImage
from service.images.decode import ImageDecoder, InputShape
from tests.service.harness import PHOTO
from tests.service.pictures import GRAY, RGB, cmyk_jpeg, encode, pixels

SCAN = b"\xff\xda"
STRAY = b"\x00\x00\x11\x12"


def forgiven() -> bytes:
    """The photo in several scans, of which none is shown before all are read, and stray bytes before the second."""
    data = encode(pixels(PHOTO), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    at = data.index(SCAN, data.index(SCAN) + 1)
    return data[:at] + STRAY + data[at:]


FORGIVEN = forgiven()
LAST_SCAN = FORGIVEN.rindex(SCAN)
FRAME = FORGIVEN.index(b"\xff\xc2")


def test_stray_bytes_between_scans_are_forgiven() -> None:
    """The picture is whole."""
    assert np.abs(GRAY.decode_photo(FORGIVEN).pixels - GRAY.decode_photo(PHOTO).pixels.astype(int)).mean() < 2


@pytest.mark.parametrize("decoder", [GRAY, RGB], ids=["gray", "rgb"])
@pytest.mark.parametrize(
    "image",
    [
        FORGIVEN[:-2] + b"\xff\xd8\xff\xd9",
        FORGIVEN[:LAST_SCAN] + b"\xff\xf5" + FORGIVEN[LAST_SCAN:],
        FORGIVEN[: LAST_SCAN + 3] + b"\0" + FORGIVEN[LAST_SCAN + 4 :],
        FORGIVEN[: FRAME + 4] + bytes([12]) + FORGIVEN[FRAME + 5 :],
    ],
    ids=["a second beginning", "an unknown marker", "a scan's length", "12 bits"],
)
def test_a_failure_behind_what_is_forgiven_is_one(image: bytes, decoder: ImageDecoder) -> None:
    """Nothing has been decoded then: what the memory for it held before, others' pictures, is not answered for it."""
    with pytest.raises(InvalidImage, match="damaged"):
        decoder.decode_photo(image)


def test_a_missing_end_behind_what_is_forgiven_is_one() -> None:
    """Half a picture would be answered with a guess."""
    with pytest.raises(InvalidImage, match="cut off"):
        GRAY.decode_photo(FORGIVEN[: len(FORGIVEN) // 2])


@pytest.mark.parametrize("shape", [(1300, 2600), (2600, 1300)], ids=["wide", "tall"])
def test_what_is_forgiven_is_decoded_at_a_reduced_scale_too(shape: tuple[int, int]) -> None:
    """A large photo with stray bytes takes no more memory than one without: half of these 2600 pixels are enough."""
    height, width = shape
    image = encode(np.full((height, width, 3), (10, 20, 200), np.uint8), ".jpg")
    at = image.index(SCAN)
    for decoder in (GRAY, RGB):
        photo = decoder.decode_photo(image[:at] + STRAY + image[at:])
        assert photo.pixels.shape[:2] == (height // 2, width // 2)
        assert (photo.width, photo.height) == (width, height)
    assert photo.pixels[0, 0].tolist() == pytest.approx([200, 20, 10], abs=3)


@pytest.mark.parametrize("color", ["gray", "rgb"])
def test_a_cmyk_jpeg_is_the_same_picture_at_a_reduced_scale(color: str) -> None:
    """An eighth of it is enough for a small input."""
    shape = InputShape(10, 14, "gray" if color == "gray" else "rgb")
    out = np.empty((10, 14, shape.channels), np.uint8)
    ImageDecoder(shape, 50_000_000).decode_into(cmyk_jpeg(), out)
    assert out[:4, :6].mean() > 240
    assert out[6:, 8:].mean() < 15
