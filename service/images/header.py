"""What an image file's first bytes say: its format, size and orientation, without decoding it.

Sizes are read here so that an image is refused for its pixels before any decoder allocates them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from enum import Enum
from itertools import islice
from typing import NamedTuple

from service.errors import InvalidImage
from service.images import ImageFile
from service.images.exif import EXIF_MAGIC, read_orientation

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

# JPEG's markers, ITU-T T.81, table B.1. Those that carry the frame's size, SOF0-SOF15 without DHT (C4), JPG (C8) and
# DAC (CC); of these the kinds that are served: baseline, extended, and progressive, which comes in several scans. Those
# of segments that do not matter here: tables, APPn and comments; those without a segment, RST0-RST7 and TEM.
_START_OF_FRAME = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
_SERVED = frozenset({0xFFC0, 0xFFC1, 0xFFC2})
_PROGRESSIVE = 0xFFC2
_START_OF_SCAN, _END, _APP1 = 0xFFDA, 0xFFD9, 0xFFE1
_SKIPPED = frozenset({0xFFC4, 0xFFCC, 0xFFDB, 0xFFDC, 0xFFDD, *range(0xFFE0, 0xFFF0), 0xFFFE}) - {_APP1}
_ALONE = frozenset({0xFF01, *range(0xFFD0, 0xFFD8)})
# Those before it are reserved: where a restart is due, libjpeg just goes on behind them.
_FIRST_WITH_SEGMENT = 0xFFC0

_SEGMENT = struct.Struct(">HH")  # a marker and its segment's length, which counts its own two bytes
_FRAME = struct.Struct(">HHB")  # height, width and number of components
_MARKER = re.compile(rb"\xff[^\x00\xff]")
# Those that may end a scan: behind 0xFF coded data have a zero, or a restart, of which there may be thousands.
_MARKER_BEHIND_DATA = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")

# Segments before the picture. A profile or a depth map of megabytes takes some hundreds; more is walking for nothing.
_MAX_SEGMENTS = 1000

# Encoders write about ten scans. Each is a pass over the whole picture and may have a few bytes: more than twenty are
# taken up to so many, and so many pixels in all, which are some 1.4 s.
_USUAL_SCANS, _MAX_SCANS = 20, 100
_MAX_SCANNED_PIXELS = 1_000_000_000


class Format(Enum):
    """The formats that are served."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    BMP = "BMP"


class ImageHeader(NamedTuple):
    """Size in pixels as stored, before `orientation` (1-8, Exif's numbering) is applied.

    A PNG's orientation is not in its header, see `png`.
    `multiscan` is true for a JPEG that is stored in several passes over the picture.
    """

    format: Format
    width: int
    height: int
    orientation: int = 1
    multiscan: bool = False

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height in pixels once the orientation is undone."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(data: ImageFile) -> ImageHeader:
    """Read the header of a JPEG, PNG, WebP or BMP file.

    Raises:
        InvalidImage: `data` is none of these, or ends within its header.
    """
    try:
        if data[:3] == b"\xff\xd8\xff":
            return _read_jpeg(data)
        if data[:8] == PNG_MAGIC:
            return _read_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _read_webp(data)
        if data[:2] == b"BM":
            (header_size,) = struct.unpack_from("<I", data, 14)
            # OS/2's header of 12 bytes has smaller numbers. A negative height tells that the top row comes first.
            width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
            return ImageHeader(Format.BMP, abs(width), abs(height))
    except (struct.error, IndexError):
        raise InvalidImage("the image ends within its header: it was cut off") from None
    if not data:
        raise InvalidImage("the image is empty")
    raise InvalidImage("not an image that can be read: JPEG, PNG, WebP and BMP can")


def _read_png(data: ImageFile) -> ImageHeader:
    """The first chunk is the header, and holds the size (RFC 2083, section 4.1.1)."""
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        raise InvalidImage("the PNG's header is damaged")
    return ImageHeader(Format.PNG, width, height)


def _read_jpeg(data: ImageFile) -> ImageHeader:
    """Walk the marker segments to the frame header, and to the first scan where that tells whether there are more.

    An Exif segment comes before both. What lies between two segments is skipped, as libjpeg does.
    """
    position, orientation = 2, 1
    width = height = components = 0
    for _ in range(_MAX_SEGMENTS):
        marker, length = _SEGMENT.unpack_from(data, position)
        if marker in _SKIPPED and length >= 2:
            position += 2 + length
        elif marker in _START_OF_FRAME and length >= 2 and not components:
            if marker not in _SERVED:
                # Hardly anybody writes these. simplejpeg asks for a lossless one at a reduced scale, of which there is
                # none, and writes all of it into an array for less; arithmetic scans take three times as long.
                raise InvalidImage("the JPEG is lossless, hierarchical or arithmetically coded: save it anew")
            height, width, components = _FRAME.unpack_from(data, position + 5)
            if components == 1 or marker == _PROGRESSIVE:
                return ImageHeader(Format.JPEG, width, height, orientation, marker == _PROGRESSIVE)
            position += 2 + length
        elif marker == _START_OF_SCAN and components:
            interleaved = data[position + 4] == components
            return ImageHeader(Format.JPEG, width, height, orientation, not interleaved)
        elif marker == _APP1 and length >= 2:
            if data[position + 4 : position + 10] == EXIF_MAGIC:
                orientation = read_orientation(data[position + 4 : position + 2 + length])
            position += 2 + length
        elif marker in _ALONE:
            position += 2
        else:
            found = _MARKER.search(data, position)
            if found is None:
                raise IndexError
            if found.start() == position:
                break
            position = found.start()
    raise InvalidImage("the JPEG's header is damaged")


def check_scans(data: ImageFile, pixels: int) -> None:
    """Count the scans of a JPEG that has several, of so many pixels.

    Raises:
        InvalidImage: there are more than any encoder writes.
    """
    most = max(_USUAL_SCANS, min(_MAX_SCANS, _MAX_SCANNED_PIXELS // max(1, pixels)))
    if next(islice(_scans(data), most, None), None) is not None:
        raise InvalidImage(f"the JPEG has more than {most} scans: save it anew")


def _scans(data: ImageFile) -> Iterator[int]:
    """Where the scans of the picture begin.

    What lies in segments, or behind its end, is no part of it: a thumbnail; the film of a motion photo, where enough
    bytes look like anything.
    """
    position = 2
    for _ in range(2 * _MAX_SEGMENTS):
        found = _MARKER_BEHIND_DATA.search(data, position)
        if found is None:
            return
        position = found.start()
        marker = int.from_bytes(data[position : position + 2], "big")
        if marker == _END:
            return
        if marker == _START_OF_SCAN:
            yield position
        position += 2
        if marker >= _FIRST_WITH_SEGMENT and marker not in _ALONE:
            position += int.from_bytes(data[position : position + 2], "big")
    raise InvalidImage("the JPEG has more segments than any encoder writes: save it anew")


def _read_webp(data: ImageFile) -> ImageHeader:
    """The three kinds of WebP keep their size in three places (RFC 9649, section 2.5 to 2.7)."""
    chunk = data[12:16]
    orientation = 1
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(_exactly(data, 24, 3), "little")
        height = 1 + int.from_bytes(_exactly(data, 27, 3), "little")
        orientation = _webp_orientation(data)
    elif chunk == b"VP8L":
        bits = int.from_bytes(_exactly(data, 21, 4), "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif chunk == b"VP8 ":
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    else:
        raise InvalidImage("the WebP's header is damaged")
    return ImageHeader(Format.WEBP, width, height, orientation)


def _webp_orientation(data: ImageFile) -> int:
    """From the Exif chunk, which comes behind the picture; 1 if there is none in `data`."""
    position = 12
    for _ in range(_MAX_SEGMENTS):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"EXIF":
            return read_orientation(data[position + 8 : position + 8 + length])
        position += 8 + length + length % 2
        if position >= len(data):
            break
    return 1


def _exactly(data: ImageFile, start: int, size: int) -> ImageFile:
    part = data[start : start + size]
    if len(part) < size:
        raise IndexError
    return part
