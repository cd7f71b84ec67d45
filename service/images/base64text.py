"""The base64 texts in which clients send images."""

from __future__ import annotations

import pybase64

from service.errors import InvalidBase64

# Data URIs, as browsers' toDataURL makes them.
_DATA_URI_MARK = ";base64,"
_DATA_URI_MAX_PREFIX = 128

_WHITESPACE = b" \t\n\r\v\f"


def decode_base64(text: str) -> bytes:
    """The bytes of a base64 text, which may be a ``data:`` URI and may be broken into lines.

    Raises:
        InvalidBase64: anything else in it, or padding is wrong.
    """
    if text.startswith("data:"):
        mark = text.find(_DATA_URI_MARK, 0, _DATA_URI_MAX_PREFIX)
        if mark < 0:
            raise InvalidBase64("a data URI for an image starts with 'data:image/...;base64,'")
        text = text[mark + len(_DATA_URI_MARK) :]
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        pass
    try:
        # Some encoders (Android's default, MIME) break lines. Looked at second: most texts have none.
        return pybase64.b64decode(text.encode("ascii").translate(None, _WHITESPACE), validate=True)
    except ValueError:
        # The decoder's own words are the same for a wrong letter and for padding that is missing.
        raise InvalidBase64(
            "'image' is not base64 of the standard alphabet (A-Z, a-z, 0-9, + and /), padded with = to a multiple of 4"
        ) from None


def first_bytes(text: str, size: int) -> bytes:
    """The first bytes of a base64 text, `size` of them if it is as long and in one line; a multiple of 3.

    Raises:
        ValueError: it is broken into lines, or not base64; it may be not base64 without this.
    """
    start = start_of(text)
    return pybase64.b64decode(text[start : start + size // 3 * 4])


def start_of(text: str) -> int:
    """Where the base64 begins: behind what a ``data:`` URI has before it, if it has what such URIs have."""
    if not text.startswith("data:"):
        return 0
    return text.find(_DATA_URI_MARK, 0, _DATA_URI_MAX_PREFIX) + len(_DATA_URI_MARK)
