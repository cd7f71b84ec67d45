"""The form of a journal segment: frames, each with a checksum. Pure: bytes in, bytes out.

::

    frame   = marker (4 bytes) | length of payload (u32) | number of records (u32) | CRC-32 (u32) | payload
    segment = head frame (0 records; JSON: format, model) , frame, frame, ...

Integers are little-endian; the CRC-32 (zlib's) covers length, number and payload. A process that dies while it
appends leaves a last frame that is too short: it is unfinished, and not taken for a frame. Neither is one that is
wrong, nor a run of zeros, which file systems leave behind at the end of a file after a power loss: these are damage.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final
from zlib import crc32

MARKER: Final = b"\xf5VJ1"  # 0xF5 occurs in no UTF-8 text, so not in a payload either
_HEAD: Final = struct.Struct("<4sIII")
_COVERED: Final = struct.Struct("<II")

#: More than any frame has: one with a length above it is damaged, and not unfinished.
LONGEST_PAYLOAD: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Frame:
    """An intact frame: its payload, how many records that holds, and where the next frame begins."""

    payload: bytes
    count: int
    end: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes ``start`` to ``end`` are no frame. ``unfinished`` says that they are the beginning of one, at the end of
    the data, and nothing else.
    """

    start: int
    end: int
    unfinished: bool


def frame(payload: bytes, count: int) -> bytes:
    """The bytes to append for a payload of ``count`` records."""
    checksum = crc32(payload, crc32(_COVERED.pack(len(payload), count)))
    return _HEAD.pack(MARKER, len(payload), count, checksum) + payload


def parse(data: bytes, start: int = 0) -> tuple[list[Frame], list[Damage]]:
    """Every intact frame from ``start`` on, and what lies between them that is not intact.

    After damage the search goes on at the next marker, so that a bad spot costs the frames it touches and no
    others.
    """
    frames: list[Frame] = []
    damages: list[Damage] = []
    position = start
    while position < len(data):
        found = _frame_at(data, position)
        if found is not None:
            frames.append(found)
            position = found.end
            continue
        following = _next_frame(data, position + 1)
        damages.append(
            Damage(position, following, following == len(data) and _is_unfinished(data[position:]))
        )
        position = following
    return frames, damages


def _next_frame(data: bytes, position: int) -> int:
    while (position := data.find(MARKER, position)) != -1:
        if _frame_at(data, position) is not None:
            return position
        position += 1
    return len(data)


def _is_unfinished(rest: bytes) -> bool:
    if len(rest) < _HEAD.size:
        return rest[: len(MARKER)] == MARKER[: len(rest)]
    _, length, _, _ = _HEAD.unpack_from(rest)
    whole = _HEAD.size + length
    # Another marker: a frame with a wrong length, and more behind it.
    return length <= LONGEST_PAYLOAD and whole > len(rest) and rest.rfind(MARKER) == 0


def _frame_at(data: bytes, position: int) -> Frame | None:
    if len(data) - position < _HEAD.size:
        return None
    marker, length, count, checksum = _HEAD.unpack_from(data, position)
    begin = position + _HEAD.size
    end = begin + length
    if marker != MARKER or end > len(data):
        return None
    payload = data[begin:end]
    if crc32(payload, crc32(_COVERED.pack(length, count))) != checksum:
        return None
    return Frame(payload, count, end)
