"""What can be told of a sent image at once, without decoding it: its size, and whether that takes long."""

from __future__ import annotations

import re

from service.errors import RequestError
from service.images import ImageFile
from service.images.base64text import decode_base64, first_bytes, start_of
from service.images.header import Format, ImageHeader, read_header

# Work that takes longer than some milliseconds would hold up a worker's other clients. That is decoding a file larger
# than this or an image of more pixels, fewer where the format has no reduced scale, and the search for small faces in
# an image of more pixels a side.
_BYTES = 400_000
_SCALED_PIXELS = 4_000_000
_PIXELS = 350_000
# Each kilobyte of noise takes a WebP 60 µs, and a progressive JPEG 26.
_WEBP_BYTES = 100_000
_MULTISCAN_BYTES = 200_000
_SEARCHED_SIDE = 800

# The header of nearly every image that is sent, up to its size: of a sequential JPEG as libjpeg writes it, at most 511
# pixels a side. A JFIF segment, one or two tables, and the frame.
_SMALL_JPEG = re.compile(
    rb"\xff\xd8\xff\xe0\0\x10JFIF\0.{9}(?:\xff\xdb\0\x43.{65}){1,2}\xff\xc0\0.\x08[\0\1].[\0\1].", re.DOTALL
)
# The same in base64, where three bytes have four letters, for pictures of three components or one. Each 0xFF of a
# marker is the last of three: two of its bits are in the letter before its own. Any of the rest is a letter, too: of
# blanks the decoder takes no notice, and what lies behind them would be read for something else.
_FF = "[DHLPTXbfjnrvz37/]/"
_ANY = "[A-Za-z0-9+/]"
_TABLE = f"{_FF}2wBD{_ANY}{{86}}"
_SMALL_JPEG_TEXT = re.compile(
    f"/9j/4AAQSkZJRg{_ANY}{{12}}{_TABLE}(?:{_TABLE}{_FF}wAAR|{_FF}wAAL)CA[A-H]{_ANY}A[A-Za-f]"
)

# Enough for a JPEG's tables and its frame, if no profile or thumbnail comes before them.
_HEADER_BYTES = 768


def holds_up(image: str | ImageFile, searched: bool) -> bool:
    """Whether work on an image, base64 text or a file, would hold up others in an event loop. Does not raise.

    Args:
        image: as a client sent it.
        searched: whether faces are looked for in it.
    """
    if len(image) > _BYTES:
        return True
    if _is_small_jpeg(image):
        return False
    header = peek_header(image)
    if header is None:
        return False  # refused as soon as it is looked at
    if searched and max(header.width, header.height) > _SEARCHED_SIDE:
        return True
    if header.format is Format.WEBP and len(image) > _WEBP_BYTES:
        return True
    if header.multiscan and len(image) > _MULTISCAN_BYTES:
        return True
    scaled = header.format is Format.JPEG and not header.multiscan
    return header.width * header.height > (_SCALED_PIXELS if scaled else _PIXELS)


def _is_small_jpeg(image: str | ImageFile) -> bool:
    """Whether this is a JPEG of at most 511 pixels a side that is not progressive; if so, not always noticed.

    Takes less than a microsecond.
    """
    if isinstance(image, str):
        return _SMALL_JPEG_TEXT.match(image, start_of(image)) is not None
    return _SMALL_JPEG.match(image) is not None


def peek_header(image: str | ImageFile) -> ImageHeader | None:
    """The header of an image, from its first bytes if they tell; None if it is not an image. Does not raise."""
    try:
        if isinstance(image, str):
            try:
                return read_header(first_bytes(image, _HEADER_BYTES))
            except (ValueError, RequestError):
                image = decode_base64(image)
        return read_header(image)
    except RequestError:
        return None
