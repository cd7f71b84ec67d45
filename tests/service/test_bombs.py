"""Small files that would crash a decoder, keep it busy for seconds, or fill the memory."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pybase64
import pytest
from websockets.asyncio.client import connect

from service.errors import InvalidImage
from service.images.base64text import decode_base64
from service.images.decode import Color, ImageDecoder, InputShape
from service.images.header import check_scans, read_header
from service.images.peek import _is_small_jpeg, holds_up
from service.images.png import picture_only
from tests.service.harness import FACE, Running, ServiceProcess, ask, predict_message, read
from tests.service.pictures import animated_png, chunk, encode, jpeg_of_scans, oriented, pixels


@pytest.mark.parametrize("detect", ["auto", "always", "never"])
async def test_an_animated_png_is_its_first_picture(service_process: ServiceProcess, detect: str) -> None:
    """An animation whose frames do not decode crashes no worker: its frames are not looked at."""
    workers = service_process.workers
    async with connect(service_process.url) as websocket:
        await read(websocket)
        reply = await ask(websocket, b'{"detect": "%s"}\n' % detect.encode() + animated_png())
        assert reply.get("code") == ("no_face" if detect == "always" else None)
        assert (await ask(websocket, FACE))["status"] == "success"
    assert service_process.workers == workers


def test_a_decoder_sees_only_a_pngs_picture() -> None:
    """Text that inflates to megabytes, colour profiles and what follows the end are left out; the pixels stay."""
    plain = encode(pixels(), ".png")
    assert picture_only(plain)[0] is plain
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(7_900_000)))
    profile = chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(7_900_000)))
    larger = plain[:33] + text + profile + plain[33:-12] + text + plain[-12:] + b"more"
    assert picture_only(larger) == (plain, 1)
    assert picture_only(memoryview(larger)) == (plain, 1)


def test_a_palette_is_part_of_the_picture() -> None:
    """A PNG of indexed colours, some transparent, decodes as before."""
    rows = b"".join(b"\0" + bytes([0, 1] * 4) for _ in range(8))
    palette = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0))
        + chunk(b"PLTE", bytes([10, 20, 30, 200, 100, 50]))
        + chunk(b"tRNS", bytes([255, 0]))
    )
    rest = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    kept, _ = picture_only(palette + chunk(b"tEXt", b"k\0v") + rest)
    assert kept == palette + rest
    pixels = cv2.imdecode(np.frombuffer(kept, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert pixels is not None
    assert pixels[0, :2].tolist() == [[10, 20, 30], [200, 100, 50]]


@pytest.mark.parametrize(("frame", "components"), [(0xC0, 3), (0xC2, 1), (0xC2, 3)])
def test_a_jpeg_of_many_scans_is_refused(frame: int, components: int) -> None:
    """Each scan is a pass over the whole picture, whether it holds anything or not; those of any encoder are few."""
    decoder = ImageDecoder(InputShape(64, 64, "gray"), 50_000_000)
    assert decoder.decode_photo(jpeg_of_scans(100, frame, components)).pixels.shape == (64, 64)
    for image in (many := jpeg_of_scans(101, frame, components), memoryview(many)):
        with pytest.raises(InvalidImage, match="scans"):
            decoder.decode_photo(image)
    with pytest.raises(InvalidImage, match="more than 40 scans"):  # a pass over 25 megapixels takes longer
        decoder.decode_photo(jpeg_of_scans(41, frame, components, 5000))


@pytest.mark.parametrize(("pixels", "most"), [(4096, 100), (20_000_000, 50), (50_000_000, 20), (10**9, 20)])
def test_the_larger_a_jpeg_the_fewer_scans_it_may_have(pixels: int, most: int) -> None:
    """What is bounded is the work, to some seconds of one core; as many as encoders write are always taken."""
    check_scans(jpeg_of_scans(most, 0xC2, 1), pixels)
    with pytest.raises(InvalidImage, match=f"more than {most} scans"):
        check_scans(jpeg_of_scans(most + 1, 0xC2, 1), pixels)


def segments(marker: int, body: bytes, count: int = 1) -> bytes:
    return (bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body) * count


@pytest.mark.parametrize("view", [bytes, memoryview])
def test_what_is_no_part_of_a_jpegs_picture_has_no_scans(view: Callable[[bytes], bytes | memoryview]) -> None:
    """A thumbnail before it, or the film of a motion photo behind it, may look like any number of them."""
    decoder = ImageDecoder(InputShape(64, 64, "gray"), 50_000_000)
    image, other = jpeg_of_scans(100, 0xC2, 3), b"\xff\xda\0\0" * 101
    film = b"\0\0\0\x18ftypmp42" + other
    assert decoder.decode_photo(view(image[:2] + segments(0xE2, other) + image[2:] + film)).width == 64


@pytest.mark.parametrize(
    ("hidden", "reason"),
    [
        (segments(0xFE, b"\xff\xd9"), "more than 100 scans"),
        (segments(0xFE, b"", 3_000), "more segments"),
        (b"\xff\x01" * 3_000, "more segments"),
        (b"\xff\xd0" * 3_000, "more than 100 scans"),
        (b"\xff\xff", "more than 100 scans"),
        (b"stray", "more than 100 scans"),
        (b"\xff\x02\xff\xff", "more than 100 scans"),
    ],
    ids=[
        "an end in a comment",
        "comments",
        "markers",
        "restarts",
        "fill bytes",
        "stray bytes",
        "a reserved marker",
    ],
)
def test_no_scan_hides_behind_what_a_decoder_skips(hidden: bytes, reason: str) -> None:
    """Neither do segments by the million: each is a step to us."""
    image = jpeg_of_scans(101, 0xC2, 1)
    first = image.index(b"\xff\xda")
    with pytest.raises(InvalidImage, match=reason):
        check_scans(image[: first + 10] + hidden + image[first + 10 :], 4096)


@pytest.mark.parametrize("color", ["gray", "rgb"])
@pytest.mark.parametrize("frame", sorted({*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}))
def test_rare_kinds_of_jpeg_reach_no_decoder(frame: int, color: Color) -> None:
    """A lossless one has no reduced scale: asked for one, the decoder wrote beyond the array for it."""
    decoder = ImageDecoder(InputShape(64, 64, color), 50_000_000)
    for image in (jpeg_of_scans(1, frame, 1, 4000), jpeg_of_scans(1, frame, 3, 4000)):
        with pytest.raises(InvalidImage, match="lossless, hierarchical or arithmetically coded"):
            decoder.decode_into(image, np.empty((64, 64, decoder.shape.channels), np.uint8))
        with pytest.raises(InvalidImage, match="lossless, hierarchical or arithmetically coded"):
            decoder.decode_photo(image)


def _flat(side: int, suffix: str, *parameters: int, channels: int = 3) -> bytes:
    return encode(np.zeros((side, side, channels), np.uint8), suffix, *parameters)


def _noise(side: int, suffix: str, *parameters: int) -> bytes:
    return encode(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8), suffix, *parameters)


PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
PROFILE = b"\xff\xe2" + struct.pack(">H", 40_000) + b"ICC_PROFILE\0" + bytes(40_000 - 14)


@pytest.mark.parametrize(
    ("image", "searched", "held_up"),
    [
        (FACE, True, False),
        (_flat(64, ".jpg", channels=1), True, False),
        (_flat(800, ".jpg"), True, False),
        (_flat(801, ".jpg"), True, True),
        (_flat(801, ".jpg"), False, False),
        (encode(np.zeros((100, 801, 3), np.uint8), ".jpg"), True, True),
        (encode(np.zeros((801, 100, 3), np.uint8), ".jpg"), True, True),
        (_flat(801, ".jpg")[:2] + PROFILE + _flat(801, ".jpg")[2:], False, False),
        (_flat(801, ".jpg")[:2] + PROFILE + _flat(801, ".jpg")[2:], True, True),
        (_flat(2001, ".jpg", channels=1), False, True),
        (_flat(500, ".jpg", *PROGRESSIVE), True, False),
        (_flat(600, ".jpg", *PROGRESSIVE), False, True),
        (jpeg_of_scans(100, 0xC0, 3, 600), False, True),
        (_flat(500, ".png"), True, False),
        (_flat(600, ".png"), False, True),
        (_flat(600, ".webp", cv2.IMWRITE_WEBP_QUALITY, 101), False, True),
        (_noise(200, ".webp", cv2.IMWRITE_WEBP_QUALITY, 90), False, False),
        (_noise(500, ".webp", cv2.IMWRITE_WEBP_QUALITY, 90), False, True),
        (_noise(500, ".jpg", *PROGRESSIVE), False, True),
        (_noise(420, ".jpg"), False, False),
        (b"BM" + struct.pack("<IHHIIii", 1080, 0, 0, 54, 40, 7000, -7000) + bytes(1000), False, True),
        (FACE + bytes(400_000), False, True),
        (b"no image", True, False),
    ],
)
def test_what_would_hold_up_others_is_told_by_its_header(image: bytes, searched: bool, held_up: bool) -> None:
    """However small the file: pixels decide, of JPEGs that are decoded at reduced scale more than of others.

    Where faces are looked for, so does the longer side.
    """
    text = base64.b64encode(image).decode()
    for sent in (
        image,
        memoryview(image),
        text,
        f"data:image/x;base64,{text}",
        base64.encodebytes(image).decode(),
    ):
        assert holds_up(sent, searched) is held_up


@pytest.mark.parametrize("detect", ["auto", "always"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("shape", [(8, 20480), (20480, 8), (60000, 9)])
async def test_a_long_thin_image_is_served(
    running: Running, shape: tuple[int, int], suffix: str, detect: str
) -> None:
    """It becomes less than a pixel wide where photos are shrunk, and is an image nevertheless."""
    async with running.client() as websocket:
        reply = await ask(
            websocket, predict_message(encode(np.zeros(shape, np.uint8), suffix), detect=detect)
        )
        assert reply.get("code") == ("no_face" if detect == "always" else None)


@pytest.mark.parametrize("image", [FACE, _flat(64, ".jpg"), _flat(64, ".jpg", channels=1)])
def test_a_small_jpeg_in_base64_is_one_in_bytes(image: bytes) -> None:
    """Whichever byte of its header is another one: what is taken for small unseen is not large in truth."""
    for position in range(170):
        for bit in range(8):
            changed = bytearray(image)
            changed[position] ^= 1 << bit
            in_text = _is_small_jpeg(base64.b64encode(changed).decode())
            # But for the end of the word JFIF, which tells nothing.
            assert position == 10 or in_text <= _is_small_jpeg(bytes(changed))
    assert _is_small_jpeg(base64.b64encode(image).decode())


def test_blanks_make_no_large_jpeg_a_small_one() -> None:
    """The decoder passes over them: what they move to where a size is expected is no size."""
    table = bytearray([1] * 64)
    table[34:43] = b"\xff\xc0\0\x0b\x08\0\x40\0\x40"
    image = (
        b"\xff\xd8"
        + segments(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
        + segments(0xDB, b"\0" + table)
        + segments(0xC0, struct.pack(">BHHB", 8, 7000, 7000, 1) + b"\1\x11\0")
    )
    text = base64.b64encode(image).decode()
    for blank in " \t\v":
        sent = text[:52] + blank * 40 + text[52:]
        assert decode_base64(sent) == image
        assert holds_up(sent, False)


def test_parts_of_nothing_are_not_walked_through_without_end() -> None:
    """A message has room for millions of them: a picture behind so many is refused, or taken as it is stored."""
    decoder = ImageDecoder(InputShape(64, 64, "gray"), 50_000_000)
    with pytest.raises(InvalidImage, match="damaged"):
        decoder.decode_photo(FACE[:2] + segments(0xFE, b"", 1_000) + FACE[2:])
    picture = encode(pixels(), ".png")
    with pytest.raises(InvalidImage, match="its end is missing"):
        decoder.decode_photo(picture[:33] + chunk(b"tEXt", b"") * 65_536 + picture[33:])
    turned = oriented(".webp", 6)
    at = turned.index(b"EXIF")
    assert read_header(turned).orientation == 6
    assert read_header(turned[:at] + b"none\0\0\0\0" * 1_000 + turned[at:]).orientation == 1


def animated_webp(width: int, height: int) -> bytes:
    """An animation of one frame of 16x16 pixels, on a canvas of this size."""
    frame = encode(np.zeros((16, 16, 3), np.uint8), ".webp")[12:]
    sides = [(side - 1).to_bytes(3, "little") for side in (width, height, 16, 16)]
    chunks = (
        (b"VP8X", b"\2\0\0\0" + sides[0] + sides[1]),
        (b"ANIM", bytes(6)),
        (b"ANMF", bytes(6) + sides[2] + sides[3] + b"\x64\0\0\0" + frame),
    )
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Decodes what it reads, and says how far that raised the peak of its memory, in bytes.
MEASURE = """
import resource, sys
from service.images.decode import ImageDecoder, InputShape
decoder, image = ImageDecoder(InputShape(64, 64, sys.argv[1]), 50_000_000), sys.stdin.buffer.read()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
decoder.decode_photo(image)
print((peak() - before) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.parametrize(("color", "pixel_bytes"), [("gray", 9), ("rgb", 11)])
@pytest.mark.parametrize(
    "image",
    [
        jpeg_of_scans(20, 0xC2, 3, 3000),
        jpeg_of_scans(20, 0xC2, 4, 3000),
        encode(np.zeros((3000, 3000, 4), np.uint8), ".png"),
        encode(np.zeros((3000, 3000, 4), np.uint8), ".webp"),
        animated_webp(3000, 3000),
    ],
    ids=["progressive JPEG", "CMYK", "PNG", "WebP", "animated WebP"],
)
def test_a_pixel_takes_no_more_memory_than_is_said(image: bytes, color: str, pixel_bytes: int) -> None:
    """So many bytes as docs/operations.md has beside MAX_IMAGE_PIXELS, and those that deployments leave room for."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, color], input=image, capture_output=True, check=True
    )
    assert int(done.stdout) < (pixel_bytes + 0.5) * 3000 * 3000


def test_base64_in_many_lines_takes_no_memory_for_each() -> None:
    """An object for each line would take twenty times the text, and nobody else is served while they are made."""
    text = "AB\n" * 400_000
    tracemalloc.start()
    try:
        assert decode_base64(text) == pybase64.b64decode("AB" * 400_000)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    finally:
        tracemalloc.stop()
