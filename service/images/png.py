"""A PNG's chunks: what a decoder is given of them."""

from __future__ import annotations

from service.errors import InvalidImage
from service.images import ImageFile
from service.images.exif import read_orientation
from service.images.header import PNG_MAGIC

# What the picture is made of. RFC 2083, section 4.
_PICTURE = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})

# Encoders write chunks of 8 KB and more; so many are tens of milliseconds of walking, and no picture.
_MAX_CHUNKS = 65_536


def picture_only(data: ImageFile) -> tuple[ImageFile, int]:
    """A PNG without what its picture can do without, such as text, colour profiles and animation; its orientation.

    A decoder inflates text and profiles, to megabytes for some bytes; OpenCV's reader of animations crashes on some.
    One that believes a chunk's length allocates it before it finds the file too short: 2 GB for a file of some
    bytes. And one that finds a second header believes it, whose size was never looked at.

    Raises:
        InvalidImage: the file ends before its last chunk does, or has two headers.
    """
    view = memoryview(data)
    parts = [view[: len(PNG_MAGIC)]]
    end = len(PNG_MAGIC)
    kept, orientation = end, 1
    for number in range(_MAX_CHUNKS):
        start = end
        end += 12 + int.from_bytes(view[start : start + 4], "big")
        if end > len(view):
            break
        kind = bytes(view[start + 4 : start + 8])
        if kind == b"IHDR" and number:
            raise InvalidImage("the PNG has more than one header")
        if kind in _PICTURE:
            parts.append(view[start:end])
            kept += end - start
        elif kind == b"eXIf":
            orientation = read_orientation(view[start + 8 : end - 4])
        if kind == b"IEND":
            return data if kept == len(view) else b"".join(parts), orientation
    raise InvalidImage("the PNG is cut off: its end is missing")
