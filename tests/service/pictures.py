"""Images that tests make, good and bad."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from service.images.decode import ImageDecoder, InputShape
from tests.service.harness import FACE

# What reads them for a model that sees shades, and for one that sees colours.
GRAY = ImageDecoder(InputShape(64, 64, "gray"), max_pixels=50_000_000)
RGB = ImageDecoder(InputShape(96, 96, "rgb"), max_pixels=50_000_000)


def encode(image: np.ndarray[Any, Any], suffix: str, *options: int) -> bytes:
    """The image as a file; the options are pairs, as OpenCV has them (`cv2.IMWRITE_JPEG_QUALITY, 92`)."""
    ok, data = cv2.imencode(suffix, image, options)
    assert ok
    return data.tobytes()


def pixels(image: bytes = FACE) -> npt.NDArray[np.uint8]:
    """An image file in OpenCV's colour order: [h, w, 3]."""
    found = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return np.asarray(found, np.uint8)


def large_bitmap() -> bytes:
    """An uncompressed image of 2 MB, in noise."""
    return encode(np.random.default_rng(1).integers(0, 256, (700, 1000, 3), np.uint8), ".bmp")


def corner_image(width: int = 120, height: int = 80) -> npt.NDArray[np.uint8]:
    """Black, with a white top left corner: [h, w, 3]. Which way is up can be told from it."""
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2, : width // 2] = 255
    return image


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG file of any announced size, whatever its rows hold."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def animated_png() -> bytes:
    """A picture of 20x20 pixels, and an animation beside it, whose only frame has a row of a filter that is not."""
    row = bytes(1 + 3 * 20)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 20, 20, 8, 2, 0, 0, 0))
        + chunk(b"acTL", struct.pack(">II", 2, 0))
        + chunk(b"IDAT", zlib.compress(row * 20))
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 20, 20, 0, 0, 1, 10, 0, 0))
        + chunk(b"fdAT", struct.pack(">I", 1) + zlib.compress((b"\x09" + row[1:]) * 20))
        + chunk(b"IEND", b"")
    )


def segment(marker: int, body: bytes) -> bytes:
    """One segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def exif(orientation: int, order: str = "<") -> bytes:
    """A TIFF directory with an orientation, behind another entry, as cameras write it."""
    mark = b"II" if order == "<" else b"MM"
    entries = [0x0103, 3, 1, 6, 0, 0x0112, 3, 1, orientation, 0]
    return mark + struct.pack(f"{order}HIHHHIHHHHIHHI", 42, 8, 2, *entries, 0)


def with_orientation(jpeg: bytes, orientation: int, order: str = "<") -> bytes:
    """Put an Exif block with an orientation into a JPEG file."""
    return jpeg[:2] + segment(0xE1, b"Exif\0\0" + exif(orientation, order)) + jpeg[2:]


def oriented(suffix: str, orientation: int) -> bytes:
    """The corner image as a file with an Exif orientation, where its format keeps it."""
    image = encode(corner_image(), suffix)
    if suffix == ".jpg":
        return with_orientation(image, orientation)
    if suffix == ".png":
        return image[:-12] + chunk(b"eXIf", exif(orientation)) + chunk(b"tEXt", b"k\0text") + image[-12:]
    parts = struct.pack("<4sIB3x", b"VP8X", 10, 8) + b"".join(
        (side - 1).to_bytes(3, "little") for side in (120, 80)
    )
    parts += image[12:] + b"EXIF" + struct.pack("<I", len(exif(orientation))) + exif(orientation)
    return b"RIFF" + struct.pack("<I", 4 + len(parts)) + b"WEBP" + parts


def jpeg_of_scans(count: int, frame: int, components: int, side: int = 64) -> bytes:
    """A JPEG whose scans, of one component each, have no data: the picture is gray."""
    numbers = range(1, components + 1)
    progressive = frame == 0xC2
    table = bytes([1, 1, *[0] * 14, 0, 1])
    return (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + bytes([1] * 64))
        + segment(0xC4, b"\x00" + table + b"\x10" + table)
        + segment(
            frame,
            struct.pack(">BHHB", 8, side, side, components)
            + b"".join(bytes([number, 0x11, 0]) for number in numbers),
        )
        + b"".join(
            segment(0xDA, bytes([1, index % components + 1, 0, 0, 0 if progressive else 63, 0]))
            for index in range(count)
        )
        + b"\xff\xd9"
    )


def cmyk_jpeg(stored: npt.NDArray[np.uint8] | None = None, transform: int | None = 0) -> bytes:
    """A CMYK JPEG. No encoder at hand writes one, so its segments are put together.

    Four identical-sampling components, each coded as in a gray JPEG, one scan per component.

    Args:
        stored: the components, uint8 [h, w, 4]; by default each is the corner image.
        transform: what its Adobe marker says, 2 for YCCK; None for no marker.
    """
    if stored is None:
        stored = np.repeat(corner_image()[:, :, :1], 4, axis=2)
    scans: list[bytes] = []
    for component in range(4):
        gray = simplejpeg.encode_jpeg(stored[:, :, component : component + 1].copy(), 95, "GRAY")
        segments: list[tuple[int, bytes]] = []
        stream = io.BytesIO(gray)
        stream.seek(2)
        while True:
            _, marker = stream.read(2)
            (length,) = struct.unpack(">H", stream.read(2))
            body = stream.read(length - 2)
            if marker == 0xDA:
                break
            segments.append((marker, body))
        scans.append(stream.read()[:-2])
    out = b"\xff\xd8"
    if transform is not None:
        out += segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, transform))
    for marker, body in segments:
        if marker == 0xE0:
            continue
        if marker == 0xC0:
            components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3, 4))
            body = body[:5] + bytes([4]) + components
        out += segment(marker, body)
    for number, scan in enumerate(scans, 1):
        out += segment(0xDA, bytes([1, number, 0, 0, 63, 0])) + scan
    return out + b"\xff\xd9"
