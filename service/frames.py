"""WebSocket frames on the hot path, without the library's parser and objects. Pure.

Nearly all that clients send is one whole frame per read, and all that they get is one unfragmented frame per reply.
Those are read and made here. Whatever else comes (parts of frames, fragments, pings, closes, what breaks the protocol)
is left to the library, which knows all of RFC 6455.
"""

from __future__ import annotations

import struct

from websockets.frames import Frame, Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:  # where there is no wheel for the platform, and no compiler
    from websockets.utils import apply_mask

_TEXT, _BINARY = 0x80 | Opcode.TEXT, 0x80 | Opcode.BINARY  # final, no reserved bits
_MASKED = 0x80
_HEAD_BYTES, _MASK_BYTES = 2, 4
_SHORT, _MEDIUM = 126, 65536


def text_frame(payload: bytes) -> bytes:
    """One text frame of a server: unfragmented, unmasked (RFC 6455, section 5.1) and without extensions."""
    size = len(payload)
    if size < _SHORT:
        head = struct.pack("!BB", _TEXT, size)
    elif size < _MEDIUM:
        head = struct.pack("!BBH", _TEXT, 126, size)
    else:
        head = struct.pack("!BBQ", _TEXT, 127, size)
    return head + payload


def whole_messages(data: bytes, max_size: int) -> list[tuple[bool, bytes]] | None:
    """What a client sent, if it is nothing but whole messages of one frame each: whether it is text, and its bytes.

    None if there is anything else in it, whose payload is longer than `max_size` too; nothing of it is then taken.
    `data` begins where a frame begins.
    """
    messages: list[tuple[bool, bytes]] = []
    end, position = len(data), 0
    while position < end:
        start = position + _HEAD_BYTES + _MASK_BYTES
        if start > end:
            return None
        first, second = data[position], data[position + 1]
        if (first != _TEXT and first != _BINARY) or not second & _MASKED:
            return None
        size = second & 0x7F
        if size == 126:
            start += 2
            size = int.from_bytes(data[position + 2 : position + 4], "big")
        elif size == 127:
            start += 8
            size = int.from_bytes(data[position + 2 : position + 10], "big")
        position = start + size
        if size > max_size or position > end:
            return None
        messages.append((first == _TEXT, apply_mask(data[start:position], data[start - _MASK_BYTES : start])))
    return messages


def wire_size(frame: Frame) -> int:
    """Bytes that a client's frame took at least: its length may have been written in more than it needs."""
    size = len(frame.data)
    return _HEAD_BYTES + (0 if size < _SHORT else 2 if size < _MEDIUM else 8) + _MASK_BYTES + size
