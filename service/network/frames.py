"""WebSocket frames as clients send them, and as they are sent to clients, without the library's objects. Pure.

Nearly all that clients send is one whole frame per read, or one large frame over many reads, and all that they get is
one unfragmented frame per reply. All frames of messages are read here, fragments too: the library would move the bytes
of a large frame some ten times, and keep everybody else waiting for that. Pings, pongs and closes are only told apart
here, and left to the library. So it never sees a part of a frame, nor one that breaks the protocol.
"""

from __future__ import annotations

import struct
import sys

import numpy as np
from websockets.frames import CloseCode, Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:  # where there is no wheel for the platform, and no compiler
    from websockets.utils import apply_mask

_FINAL, _RESERVED, _CONTROL, _OPCODE = 0x80, 0x70, 0x08, 0x0F
_TEXT, _BINARY = _FINAL | Opcode.TEXT, _FINAL | Opcode.BINARY
_CONTROLS = (_FINAL | Opcode.PING, _FINAL | Opcode.PONG, _FINAL | Opcode.CLOSE)
_MASKED, _SIZE = 0x80, 0x7F
_HEAD_BYTES, _MASK_BYTES = 2, 4
_SHORT, _MEDIUM = 126, 65536


class Breach(Exception):
    """A frame that no client may send; `code` is what its connection is closed with."""

    def __init__(self, reason: str, code: CloseCode = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(reason)
        self.code = code


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


def _read_size(data: bytes, position: int) -> tuple[int, int] | None:
    """Where the mask of the frame at `position` lies, and its payload's size. None if its length is not all there."""
    start = position + _HEAD_BYTES
    if start > len(data):
        return None
    size = data[position + 1] & _SIZE
    if size < _SHORT:
        return start, size
    end = start + (2 if size == _SHORT else 8)
    if end > len(data):
        return None
    return end, int.from_bytes(data[start:end], "big")


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
    available = len(data)
    while position < available and len(messages) < most:
        first = data[position]
        if first != _TEXT and first != _BINARY:
            break
        read = _read_size(data, position)
        if read is None:
            break
        mask, size = read
        start = mask + _MASK_BYTES
        end = start + size
        if end > available or size > max_size or not data[position + 1] & _MASKED:
            break
        messages.append((first == _TEXT, apply_mask(data[start:end], data[mask:start])))
        position = end
    return messages, position


def control_frames(data: bytes, position: int, most: int) -> tuple[int, int]:
    """How many whole pings, pongs and closes lie at `position`, at most so many; and where the first byte behind is."""
    count = 0
    while count < most and position + _HEAD_BYTES <= len(data) and data[position] in _CONTROLS:
        # Of one that has no mask it is too large, as it is of one that is too long.
        size = data[position + 1] ^ _MASKED
        end = position + _HEAD_BYTES + _MASK_BYTES + size
        if size >= _SHORT or end > len(data):
            break
        count += 1
        position = end
    return count, position


class IncomingFrame:
    """A message's frame, or a fragment of one, that is unmasked read by read. Its payload begins at `start`.

    `left` is how much of it has not come yet.
    """

    def __init__(self, first: int, start: int, size: int, mask: bytes) -> None:
        self.text = first & _OPCODE == Opcode.TEXT
        self.is_final = bool(first & _FINAL)
        self.is_short = size < _SHORT
        self.start = start
        self.left = size
        self._mask = mask

    def take(self, data: bytes, position: int) -> bytes:
        """What of its payload lies at `position`."""
        part = data[position : position + self.left]
        self.left -= len(part)
        turn = len(part) % _MASK_BYTES
        unmasked = apply_mask(part, self._mask)
        self._mask = self._mask[turn:] + self._mask[:turn]
        return unmasked


class LargeMessage(IncomingFrame):
    """A message of one frame that comes in many reads. It is put in its place read by read.

    `payload` is all of it, once nothing is left. The memory is asked for at once, but NumPy does not clear it: what is
    only announced takes none, and the kernel finds pages for it read by read.
    """

    def __init__(self, first: int, start: int, size: int, mask: bytes) -> None:
        super().__init__(first, start, size, mask)
        self.payload = np.empty(size, np.uint8).data

    def take(self, data: bytes, position: int) -> bytes:
        """What of it lies at `position`, which is put in its place."""
        filled = len(self.payload) - self.left
        part = super().take(data, position)
        self.payload[filled : filled + len(part)] = part
        return part


def begin_frame(data: bytes, position: int, max_size: int, *, continued: bool) -> IncomingFrame | None:
    """The frame of a message whose head is at `position`: a `LargeMessage` unless it is a fragment.

    None if the head is not all there, or if it is a control frame, which is read when it is whole.

    Args:
        data: what came.
        position: where the frame begins.
        max_size: the most bytes that it may have.
        continued: whether fragments of its message came before.

    Raises:
        Breach: there must be no such frame, or not here. The head tells, or what there is of it.
    """
    first = data[position]
    _check_first(first, continued)
    if position + 1 < len(data) and not data[position + 1] & _MASKED:
        raise Breach("incorrect masking")
    if first & _CONTROL:
        if position + 1 < len(data) and data[position + 1] & _SIZE >= _SHORT:
            raise Breach("control frame too long")
        return None
    read = _read_size(data, position)
    if read is None:
        return None
    mask, size = read
    if size > max_size:
        raise Breach(f"frame with {size} bytes exceeds limit of {max_size} bytes", CloseCode.MESSAGE_TOO_BIG)
    start = mask + _MASK_BYTES
    if start > len(data):
        return None
    kind = LargeMessage if first & _FINAL and not continued else IncomingFrame
    return kind(first, start, size, data[mask:start])


def _check_first(first: int, continued: bool) -> None:
    """Check what a frame's first byte tells."""
    if first & _RESERVED:
        raise Breach("reserved bits must be 0")
    if first & _CONTROL:
        if first | _FINAL not in _CONTROLS:
            raise Breach("invalid opcode")
        if not first & _FINAL:
            raise Breach("fragmented control frame")
        return
    opcode = first & _OPCODE
    if opcode > Opcode.BINARY:
        raise Breach("invalid opcode")
    if continued and opcode != Opcode.CONT:
        raise Breach("expected a continuation frame")
    if not continued and opcode == Opcode.CONT:
        raise Breach("unexpected continuation frame")
