"""Reading and decoding images of every kind that clients send."""

from __future__ import annotations

import base64
import struct

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st

from service.errors import ImageTooLarge, InvalidBase64, InvalidImage, RequestError
from service.images.base64text import decode_base64
from service.images.decode import ImageDecoder
from service.images.header import Format, ImageHeader, read_header
from tests.service.harness import FACE, PHOTO
from tests.service.pictures import (
    GRAY,
    RGB,
    cmyk_jpeg,
    corner_image,
    encode,
    exif,
    oriented,
    png,
    segment,
    with_orientation,
)

GRAIN = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)

Pixels = npt.NDArray[np.uint8]


def decode(decoder: ImageDecoder, image: str | bytes) -> Pixels:
    shape = decoder.shape
    out = np.full((shape.height, shape.width, shape.channels), 7, np.uint8)
    decoder.decode_into(image, out)
    return out


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".jpg", Format.JPEG), (".png", Format.PNG), (".webp", Format.WEBP), (".bmp", Format.BMP)],
)
def test_a_header_tells_format_and_size(suffix: str, kind: Format) -> None:
    """Size is read without decoding, in each format that is served."""
    assert read_header(encode(corner_image(120, 80), suffix)) == ImageHeader(kind, 120, 80)


def test_a_webp_of_each_kind_tells_its_size() -> None:
    """Lossless and lossy WebP keep their size in different places."""
    image = corner_image(33, 44)
    for quality in (50, 101):  # above 100 is lossless
        webp = encode(image, ".webp", cv2.IMWRITE_WEBP_QUALITY, quality)
        assert read_header(webp) == ImageHeader(Format.WEBP, 33, 44)
    extended = (
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (32).to_bytes(3, "little") + (43).to_bytes(3, "little")
    )
    assert read_header(extended) == ImageHeader(Format.WEBP, 33, 44)


def test_a_bmp_of_os2_is_read() -> None:
    """Its header is shorter, with smaller numbers."""
    pixels = encode(corner_image(), ".bmp")[54:]
    bmp = b"BM" + struct.pack("<IHHIIHHHH", 26 + len(pixels), 0, 0, 26, 12, 120, 80, 1, 24) + pixels
    assert read_header(bmp) == ImageHeader(Format.BMP, 120, 80)
    assert np.array_equal(decode(RGB, bmp), decode(RGB, encode(corner_image(), ".bmp")))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_read_in_either_byte_order(orientation: int, order: str) -> None:
    """Cameras write Exif in either byte order."""
    jpeg = with_orientation(encode(corner_image(), ".jpg"), orientation, order)
    assert read_header(jpeg).orientation == orientation


def test_a_thumbnail_is_not_the_picture() -> None:
    """An Exif block may hold a small JPEG; the block is skipped as a whole, before a JFIF segment and behind it."""
    jpeg = encode(corner_image(120, 80), ".jpg")
    block = segment(0xE1, b"Exif\0\0" + exif(6) + encode(corner_image(30, 20), ".jpg"))
    for at in (2, jpeg.index(b"\xff\xdb")):
        assert read_header(jpeg[:at] + block + jpeg[at:]) == ImageHeader(Format.JPEG, 120, 80, 6)


def test_what_else_is_said_of_a_picture_does_not_turn_it() -> None:
    """Cameras write XMP in a segment of the same kind, behind the Exif block as a rule."""
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>")
    plain = encode(corner_image(), ".jpg")
    jpeg = with_orientation(plain[:2] + xmp + plain[2:], 6)
    assert jpeg.index(b"Exif") < jpeg.index(b"xmpmeta")
    assert read_header(jpeg).orientation == 6


def test_a_damaged_exif_block_means_upright() -> None:
    """The picture can be read without it."""
    jpeg = with_orientation(encode(corner_image(), ".jpg"), 6)
    assert read_header(jpeg).orientation == 6
    for damaged in (
        jpeg.replace(b"II*\0", b"XX*\0", 1),
        jpeg.replace(struct.pack("<HI", 42, 8), struct.pack("<HI", 42, 9999)),
        with_orientation(encode(corner_image(), ".jpg"), 0),
        with_orientation(encode(corner_image(), ".jpg"), 9),
    ):
        assert damaged != jpeg
        assert read_header(damaged).orientation == 1


# Where the white corner is once the picture is upright, as (row, column) of the quarter. Exif 2.3, section 4.6.4.
UPRIGHT_CORNER = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}


@pytest.mark.parametrize("decoder", [GRAY, RGB], ids=["gray", "rgb"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_rotated_photo_is_turned_upright(suffix: str, orientation: int, decoder: ImageDecoder) -> None:
    """All eight orientations end with the corner where a viewer would show it, in each format that keeps them."""
    image = oriented(suffix, orientation)
    photo = decoder.decode_photo(image)
    assert (photo.width, photo.height) == ((80, 120) if orientation >= 5 else (120, 80))
    assert photo.pixels.shape[:2] == (photo.height, photo.width)
    out = decode(decoder, image)
    half_h, half_w = decoder.shape.height // 2, decoder.shape.width // 2
    means = out[:, :, 0].reshape(2, half_h, 2, half_w).mean(axis=(1, 3))
    assert np.unravel_index(means.argmax(), (2, 2)) == UPRIGHT_CORNER[orientation]
    assert means.max() > 240
    assert np.sort(means.ravel())[2] < 15


def test_a_webp_is_turned_upright_whatever_lies_before_its_orientation() -> None:
    """A chunk of an odd length has a byte behind it that it does not count."""
    image = oriented(".webp", 6)
    start = image.index(b"EXIF")
    image = image[:start] + b"odd " + struct.pack("<I", 3) + b"abc\0" + image[start:]
    image = image[:4] + struct.pack("<I", len(image) - 8) + image[8:]
    assert read_header(image).orientation == 6
    photo = RGB.decode_photo(image)
    assert (photo.width, photo.height) == (80, 120)


@pytest.mark.parametrize("orientation", [4, 5])
@pytest.mark.parametrize("shape", [(1300, 2600), (2600, 1300)], ids=["wide", "tall"])
def test_a_large_photo_is_decoded_no_larger_than_it_is_searched(
    shape: tuple[int, int], orientation: int
) -> None:
    """However it lies: to look for faces its longer side needs 1280 pixels, and half of these 2600 are enough."""
    photo = GRAY.decode_photo(with_orientation(encode(np.zeros(shape, np.uint8), ".jpg"), orientation))
    assert sorted(photo.pixels.shape) == [650, 1300]
    assert sorted((photo.width, photo.height)) == [1300, 2600]


def test_gray_decoding_agrees_with_opencv() -> None:
    """The reduced-scale path shows the network the same picture as a full decode would."""
    full = cv2.imdecode(np.frombuffer(PHOTO, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert full is not None
    expected = cv2.resize(full, (64, 64), interpolation=cv2.INTER_AREA).astype(int)
    difference = np.abs(decode(GRAY, PHOTO)[:, :, 0].astype(int) - expected)
    assert difference.mean() < 1
    assert difference.max() < 16


def test_colour_models_get_red_first() -> None:
    """RGB order, from JPEG and from PNG."""
    red = np.zeros((100, 100, 3), np.uint8)
    red[:, :, 2] = 250  # OpenCV's order is BGR
    for suffix in (".jpg", ".png", ".webp"):
        means = decode(RGB, encode(red, suffix)).mean(axis=(0, 1))
        assert means[0] > 240
        assert means[1:].max() < 12


def test_large_images_are_averaged() -> None:
    """Of noise, which sampling would keep, little is left in the model's input."""
    assert decode(GRAY, encode(np.tile(GRAIN, (10, 8, 1)), ".png")).std() < 10


def test_small_images_are_enlarged() -> None:
    """A 10x10 image becomes the model's input."""
    assert decode(GRAY, encode(np.full((10, 10), 200, np.uint8), ".png")).mean() == pytest.approx(200, abs=1)


def test_a_gray_jpeg_serves_a_colour_model() -> None:
    """One channel is spread over three."""
    out = decode(RGB, encode(np.full((100, 100), 120, np.uint8), ".jpg"))
    assert out.min() >= 118
    assert out.max() <= 122


def test_a_16_bit_png_is_reduced_to_8() -> None:
    """Half of full scale stays half."""
    image = np.full((64, 64), 32768, np.uint16)
    assert decode(GRAY, encode(image, ".png")).mean() == pytest.approx(128, abs=1)


def test_alpha_is_dropped() -> None:
    """A PNG with transparency is read as its colours."""
    image = np.full((64, 64, 4), 90, np.uint8)
    image[:, :, 3] = 10
    assert decode(GRAY, encode(image, ".png")).mean() == pytest.approx(90, abs=1)


def test_a_cmyk_jpeg_is_read() -> None:
    """Print-ready JPEG files show the same picture."""
    image = cmyk_jpeg()
    assert simplejpeg.decode_jpeg_header(image)[2] == "CMYK"
    out = decode(GRAY, image)
    assert out[:32, :32].mean() > 240
    assert out[32:, 32:].mean() < 15


@pytest.mark.parametrize("side", [96, 768])
@pytest.mark.parametrize(
    ("stored", "transform"),
    [((200, 100, 50, 128), None), ((200, 100, 50, 128), 0), ((131, 170, 74, 128), 2)],
    ids=["CMYK without a marker", "CMYK", "YCCK"],
)
def test_the_colours_of_a_cmyk_jpeg(stored: tuple[int, ...], transform: int | None, side: int) -> None:
    """Its inks are stored inverted, and as luma and chroma if its marker says so. Also where an eighth is decoded."""
    image = cmyk_jpeg(np.full((side, side, 4), stored, np.uint8), transform)
    assert np.abs(decode(RGB, image) - np.array([100, 50, 25])).max() < 5
    assert decode(GRAY, image).mean() == pytest.approx(62, abs=3)


@pytest.mark.parametrize("decoder", [GRAY, RGB], ids=["gray", "rgb"])
@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc0", b"\xff\xc4", b"\xff\xda", b"\xff\xd9"])
def test_stray_bytes_between_markers_are_forgiven(marker: bytes, decoder: ImageDecoder) -> None:
    """Some cameras write them; the picture is whole, and upright."""
    jpeg = with_orientation(FACE, 6)
    at = jpeg.rindex(marker)
    stray = jpeg[:at] + b"\x00\x00\x11\x12" + jpeg[at:]
    difference = np.abs(decode(decoder, stray).astype(int) - decode(decoder, jpeg))
    assert difference.mean() < 3  # OpenCV decodes at full scale


@pytest.mark.parametrize("mark", [b"\xff\xd0", b"\xff\x01", b"\xff\0"])
def test_segments_are_found_as_the_decoder_finds_them(mark: bytes) -> None:
    """Led to another frame header than the decoder, one would check another size than what is decoded."""
    large, small = (encode(np.zeros((side, side), np.uint8), ".jpg") for side in (200, 100))
    at, rest = large.index(b"\xff\xdb"), large[large.index(b"\xff\xdb") : -2]
    # These marks have no segment. To one who takes the next bytes for its length, the small frame is what follows.
    both = large[:at] + mark + struct.pack(">H", 2 + len(rest)) + rest + small[small.index(b"\xff\xdb") :]
    assert simplejpeg.decode_jpeg_header(both, strict=False)[:2] == (200, 200)
    assert read_header(both) == ImageHeader(Format.JPEG, 200, 200)


@pytest.mark.parametrize(
    ("image", "hint"),
    [
        (b"", "empty"),
        (b"The quick brown fox jumps over the lazy dog", "not an image"),
        (b"GIF89a" + bytes(100), "not an image that can be read: JPEG"),
        (b"\0\0\0\x24ftypheic" + bytes(100), "not an image that can be read: JPEG"),
        (PHOTO[: len(PHOTO) // 2], "cut off"),
        (FACE[:-10], "cut off"),
        (cmyk_jpeg()[:-40], "its end is missing"),
        (FACE[:100], "cut"),
        (b"\xff\xd8\xff", "cut"),
        (b"\xff\xd8\xff\xe0\x00\x00" + bytes(50), "damaged"),
        (b"\xff\xd8\xff\xe0\x00\x02" + bytes(50), "cut off"),
        (b"\x89PNG\r\n\x1a\n", "cut off"),
        (encode(corner_image(), ".png")[:-30], "cut off"),
        (encode(corner_image(), ".png")[:-1], "its end is missing"),
        (png(64, 64, b"too short"), "PNG"),
        (encode(GRAIN, ".webp")[:2000], "WebP"),
        (b"RIFF\x10\0\0\0WEBPVP8Q" + bytes(20), "WebP"),
        (b"RIFF\x10\0\0\0WAVEfmt " + bytes(20), "not an image that can be read: JPEG"),
        (png(1, 1, b"\0\0"), "1 x 1"),
        (png(7, 300, bytes(8 * 300)), "7 x 300"),
        (png(300, 7, bytes(301 * 7)), "300 x 7"),
        (png(0, 0, b""), "0 x 0"),
    ],
)
def test_what_cannot_be_read_is_an_invalid_image(image: bytes, hint: str) -> None:
    """The message says what is wrong with it."""
    with pytest.raises(InvalidImage) as caught:
        decode(GRAY, image)
    assert hint in caught.value.message


@pytest.mark.parametrize("image", [png(20_000, 20_000, bytes(100)), png(2**31 - 1, 2**31 - 1, b"")])
def test_a_bomb_is_refused_by_its_header(image: bytes) -> None:
    """A small file that would decode to gigabytes costs nothing."""
    with pytest.raises(ImageTooLarge, match="pixels"):
        decode(GRAY, image)


@pytest.mark.parametrize(
    ("image", "longest"),
    [
        (
            encode(np.zeros((8, 9), np.uint8), ".jpg").replace(
                struct.pack(">HH", 8, 9), struct.pack(">HH", 8, 65_501)
            ),
            "65,500",
        ),
        (png(8, 1_000_001, bytes(9 * 1_000_001)), "1,000,000"),
        (b"BM" + struct.pack("<IHHIIii", 1080, 0, 0, 54, 40, 1_100_000, 8) + bytes(1000), "1,000,000"),
    ],
)
def test_a_side_that_no_decoder_takes_is_told(image: bytes, longest: str) -> None:
    """In our words, and as what it is: the file is not damaged."""
    with pytest.raises(ImageTooLarge, match=f"at most {longest} a side"):
        decode(GRAY, image)


def test_an_image_as_large_as_it_may_be_is_read() -> None:
    """One more pixel, or one more a side, and it is not."""
    image = encode(corner_image(120, 80), ".png")
    assert ImageDecoder(GRAY.shape, 120 * 80).decode_photo(image).width == 120
    with pytest.raises(ImageTooLarge, match="at most 9,599 are accepted"):
        ImageDecoder(GRAY.shape, 120 * 80 - 1).decode_photo(image)
    for shape in ((8, 65_500), (65_500, 8)):
        photo = GRAY.decode_photo(encode(np.zeros(shape, np.uint8), ".jpg"))
        assert (photo.height, photo.width) == shape


@pytest.mark.parametrize(
    "text",
    [
        base64.b64encode(FACE).decode(),
        "data:image/jpeg;base64," + base64.b64encode(FACE).decode(),
        base64.encodebytes(FACE).decode(),
        "data:image/png;charset=utf-8;base64," + base64.b64encode(FACE).decode(),
    ],
    ids=["plain", "data URI", "with line breaks", "data URI with a parameter"],
)
def test_base64_in_the_forms_that_clients_use(text: str) -> None:
    """Plain, as a data URI, and broken into lines."""
    assert decode_base64(text) == FACE


@pytest.mark.parametrize(
    "text", ["%%%", "aGk", "aGk=!", "data:image/jpeg,hello", "ñandú", "aG\x00k=", "=" * 8]
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    """Bad base64 is told from a bad image."""
    with pytest.raises(InvalidBase64):
        decode_base64(text)


@given(
    st.binary(max_size=300)
    | st.tuples(st.sampled_from([FACE, PHOTO]), st.integers(0, 2000), st.binary()).map(
        lambda parts: parts[0][: parts[1]] + parts[2] + parts[0][parts[1] + len(parts[2]) :]
    )
)
def test_any_bytes_decode_or_raise_a_request_error(data: bytes) -> None:
    """Neither noise nor a damaged photo raises anything else."""
    try:
        decode(GRAY, data)
    except RequestError as exc:
        assert exc.code in {"invalid_image", "image_too_large"}


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF, 100_000])
def test_a_png_chunk_is_not_longer_than_its_file(length: int) -> None:
    """The decoder would allocate the announced length: gigabytes for a file of some bytes."""
    data = encode(corner_image(), ".png")
    at = data.index(b"IDAT") - 4
    with pytest.raises(InvalidImage, match="cut off"):
        decode(GRAY, data[:at] + struct.pack(">I", length) + data[at + 4 :])


def test_a_png_has_one_header_and_begins_with_it() -> None:
    """A second one, or one that comes later, could announce a size that was never looked at."""
    data = encode(corner_image(), ".png")
    header, rest = data[8:33], data[33:]
    with pytest.raises(InvalidImage, match="more than one header"):
        decode(GRAY, data[:8] + header + header + rest)
    with pytest.raises(InvalidImage, match="header is damaged"):
        decode(GRAY, data[:8] + rest[:-12] + header + rest[-12:])
