"""Images that tests make, good and bad."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import cv2
import numpy as np

from tests.service.harness import FACE


def encode(image: np.ndarray[Any, Any], suffix: str) -> bytes:
    """The image as a file."""
    ok, data = cv2.imencode(suffix, image)
    assert ok
    return data.tobytes()


def face_pixels() -> np.ndarray[Any, Any]:
    """The face in OpenCV's colour order."""
    image = cv2.imdecode(np.frombuffer(FACE, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def large_bitmap() -> bytes:
    """An uncompressed image of 2 MB, in noise."""
    pixels = np.random.default_rng(1).integers(0, 256, (700, 1000, 3), np.uint8)
    return cv2.imencode(".bmp", pixels)[1].tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


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


def jpeg_of_scans(count: int, frame: int, components: int, side: int = 64) -> bytes:
    """A JPEG whose scans, of one component each, have no data: the picture is gray."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body

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
