"""WebSocket frames on the hot path, without the library's parser and objects. Pure.

Nearly all that clients send is one whole frame per read, or one large frame over many reads, and all that they get is
one unfragmented frame per reply. Those are read and made here: the library would move the bytes of a large frame some
ten times, and keep everybody else waiting for that. Whatever else comes (parts of small frames, fragments, pings,
closes, what breaks the protocol) is left to the library, which knows all of RFC 6455.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass

import numpy as np
from websockets.frames import Frame, Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:  # where there is no wheel for the platform, and no compiler
    from websockets.utils import apply_mask

_TEXT, _BINARY = 0x80 | Opcode.TEXT, 0x80 | Opcode.BINARY  # final, no reserved bits
_MASKED = 0x80
_HEAD_BYTES, _MASK_BYTES = 2, 4
_SHORT, _MEDIUM = 126, 65536
_LARGE = 32_768


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


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of a client's message of one frame: is it text, its mask, and where its payload starts and ends."""

    text: bool
    mask: bytes
    start: int
    end: int


def _read_head(data: bytes, position: int, max_size: int) -> _Head | None:
    """None if it is not all there, or is something else, or announces more than `max_size` bytes."""
    start = position + _HEAD_BYTES + _MASK_BYTES
    if start > len(data):
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
    if size > max_size or start > len(data):
        return None
    return _Head(first == _TEXT, data[start - _MASK_BYTES : start], start, start + size)


def whole_messages(
    data: bytes, position: int, max_size: int, most: int = sys.maxsize
) -> tuple[list[tuple[bool, bytes]], int]:
    """The whole messages of one frame each that a client sent, from `position` on, where a frame begins.

    At most so many of them.

    Returns:
        Whether each is text, and its bytes; and where the first byte lies that is of none of them: of a frame that is
        not whole, of one that is no message, of one that is longer than `max_size`, or the end.
    """
    messages: list[tuple[bool, bytes]] = []
    while len(messages) < most:
        head = _read_head(data, position, max_size)
        if head is None or head.end > len(data):
            break
        messages.append((head.text, apply_mask(data[head.start : head.end], head.mask)))
        position = head.end
    return messages, position


class LargeMessage:
    """A message of one frame that comes in many reads. It is unmasked and put in its place read by read.

    `payload` is all of it, once it is `done`. The memory is asked for at once, but NumPy does not clear it: what is
    only announced takes none, and the kernel finds pages for it read by read.
    """

    def __init__(self, head: _Head) -> None:
        self.text = head.text
        self.payload = np.empty(head.end - head.start, np.uint8).data
        self._mask = head.mask
        self._filled = 0

    @property
    def done(self) -> bool:
        """Whether all of it is there."""
        return self._filled == len(self.payload)

    def take(self, data: bytes) -> int:
        """Take what belongs to it from the beginning of `data`. Returns where the rest begins."""
        part = data[: len(self.payload) - self._filled]
        end = self._filled + len(part)
        self.payload[self._filled : end] = apply_mask(part, self._mask)
        self._filled = end
        turn = len(part) % _MASK_BYTES
        self._mask = self._mask[turn:] + self._mask[:turn]
        return len(part)


def begin_large_message(data: bytes, position: int, max_size: int) -> LargeMessage | None:
    """The message whose head is at `position` and whose end is not in `data`, with what there is of it.

    None if what is there is something else, or too little to tell, or short: the library copies that as fast.
    """
    head = _read_head(data, position, max_size)
    if head is None or head.end - head.start < _LARGE or head.end <= len(data):
        return None
    message = LargeMessage(head)
    message.take(data[head.start :])
    return message


def wire_size(frame: Frame) -> int:
    """Bytes that a client's frame took at least: its length may have been written in more than it needs."""
    size = len(frame.data)
    return _HEAD_BYTES + (0 if size < _SHORT else 2 if size < _MEDIUM else 8) + _MASK_BYTES + size
