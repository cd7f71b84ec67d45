"""What an image file's first bytes say: its format, size and orientation, without decoding it.

Sizes are read here so that an image is refused for its pixels before any decoder allocates them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

from service.errors import InvalidImage
from service.images import ImageFile

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

# JPEG markers that carry the frame's size: SOF0-SOF15 without DHT (C4), JPG (C8) and DAC (CC).
# ITU-T T.81, table B.1.
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_APP1 = 0xE1
_EXIF_ORIENTATION = 0x0112  # Exif 2.3, section 4.6.4


class Format(Enum):
    """The formats that are served."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WebP"
    BMP = "BMP"


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Size in pixels as stored, before `orientation` (1-8, Exif's numbering) is applied.

    `cmyk` is true for a JPEG of four components.
    """

    format: Format
    width: int
    height: int
    orientation: int = 1
    cmyk: bool = False

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
            width, height = struct.unpack_from("<ii", data, 18)
            return ImageHeader(Format.BMP, abs(width), abs(height))
    except (struct.error, IndexError):
        raise InvalidImage("the image ends within its header: it was cut off") from None
    if not data:
        raise InvalidImage("the image is empty")
    raise InvalidImage("not an image: JPEG, PNG, WebP and BMP are served")


def _read_png(data: ImageFile) -> ImageHeader:
    """The first chunk is the header, and holds the size (RFC 2083, section 4.1.1)."""
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        raise InvalidImage("the PNG's header is damaged")
    return ImageHeader(Format.PNG, width, height)


def _read_jpeg(data: ImageFile) -> ImageHeader:
    """Walk the marker segments up to the frame header; an Exif segment comes before it."""
    position = 2
    orientation = 1
    while True:
        if data[position] != 0xFF:
            raise InvalidImage("the JPEG's header is damaged")
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker in _START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return ImageHeader(Format.JPEG, width, height, orientation, cmyk=data[position + 9] == 4)
        if marker == _APP1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _read_exif_orientation(data[position + 10 : position + 2 + length])
        # A segment's length counts its own two bytes; less would walk in place for ever.
        if length < 2:
            raise InvalidImage("the JPEG's header is damaged")
        position += 2 + length


def _read_exif_orientation(tiff: ImageFile) -> int:
    """The orientation tag of the first directory; 1 (upright) where it is absent or damaged.

    A damaged Exif block does not make the picture unreadable, so it is not an error.
    """
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
        for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, _kind, _count, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _EXIF_ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass  # the block ends early
    return 1


def _read_webp(data: ImageFile) -> ImageHeader:
    """The three kinds of WebP keep their size in three places (RFC 9649, section 2.5 to 2.7)."""
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = 1 + int.from_bytes(_exactly(data, 24, 3), "little")
        height = 1 + int.from_bytes(_exactly(data, 27, 3), "little")
    elif chunk == b"VP8L":
        bits = int.from_bytes(_exactly(data, 21, 4), "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif chunk == b"VP8 ":
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    else:
        raise InvalidImage("the WebP's header is damaged")
    return ImageHeader(Format.WEBP, width, height)


def _exactly(data: ImageFile, start: int, size: int) -> ImageFile:
    part = data[start : start + size]
    if len(part) < size:
        raise IndexError
    return part
