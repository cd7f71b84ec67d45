"""The form of the journal: every truncation and every flipped bit is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.store.framing import LONGEST_PAYLOAD, MARKER, Damage, frame, parse

PAYLOADS = [b'[{"n":1}]', b"", b'[{"n":2},{"n":3}]', MARKER + b"marker inside", b"x" * 300]
FRAMES = [frame(payload, count) for count, payload in enumerate(PAYLOADS)]
SEGMENT = b"".join(FRAMES)
LAST = len(SEGMENT) - len(FRAMES[-1])


def payloads(data: bytes) -> list[bytes]:
    frames, _ = parse(data)
    return [found.payload for found in frames]


def test_what_is_framed_is_parsed() -> None:
    """Frames come back in order with their counts and ends, from any of their beginnings on."""
    frames, damages = parse(SEGMENT)
    assert [found.payload for found in frames] == PAYLOADS
    assert [found.count for found in frames] == list(range(len(PAYLOADS)))
    assert damages == []
    for number, found in enumerate(frames):
        rest, damages = parse(SEGMENT, found.end)
        assert [following.payload for following in rest] == PAYLOADS[number + 1 :]
        assert damages == []


def test_truncated_at_every_byte() -> None:
    """Wherever a segment is cut, exactly the frames that are whole are found, and the rest is an unfinished one.

    Not where a marker is in the rest, which no text has.
    """
    ends = [0]
    for data in FRAMES:
        ends.append(ends[-1] + len(data))
    for length in range(len(SEGMENT) + 1):
        whole = sum(end <= length for end in ends[1:])
        frames, damages = parse(SEGMENT[:length])
        assert [found.payload for found in frames] == PAYLOADS[:whole]
        unfinished = MARKER not in SEGMENT[ends[whole] + 1 : length]
        assert damages == ([] if length == ends[whole] else [Damage(ends[whole], length, unfinished)])


def test_every_bit_of_the_last_frame_flipped() -> None:
    """No flipped bit of the last frame goes unnoticed, none costs a frame before it, and none is taken for a frame that
    was not finished, except in a length that reaches behind the end then.
    """
    for position in range(LAST, len(SEGMENT)):
        for bit in range(8):
            damaged = bytearray(SEGMENT)
            damaged[position] ^= 1 << bit
            frames, damages = parse(bytes(damaged))
            assert [found.payload for found in frames] == PAYLOADS[:-1]
            length = int.from_bytes(damaged[LAST + 4 : LAST + 8], "little")
            assert damages == [Damage(LAST, len(SEGMENT), len(PAYLOADS[-1]) < length <= LONGEST_PAYLOAD)]


@pytest.mark.parametrize("number", [0, 2])
def test_every_byte_of_a_frame_before_others_changed(number: int) -> None:
    """Damage costs the frame that it is in; those after it are found again, and a byte too many costs none."""
    begin = sum(len(data) for data in FRAMES[:number])
    for position in range(begin, begin + len(FRAMES[number])):
        damaged = bytearray(SEGMENT)
        damaged[position] ^= 0xFF
        frames, damages = parse(bytes(damaged))
        assert [found.payload for found in frames] == PAYLOADS[:number] + PAYLOADS[number + 1 :]
        assert damages == [Damage(begin, begin + len(FRAMES[number]), unfinished=False)]
    frames, damages = parse(SEGMENT[:begin] + b"x" + SEGMENT[begin:])
    assert [found.payload for found in frames] == PAYLOADS
    assert damages == [Damage(begin, begin + 1, unfinished=False)]


def test_zeros_are_not_frames() -> None:
    """The zeros that a file system leaves at the end after a power loss are damage."""
    frames, damages = parse(SEGMENT + bytes(4096))
    assert len(frames) == len(PAYLOADS)
    assert damages == [Damage(len(SEGMENT), len(SEGMENT) + 4096, unfinished=False)]


def test_two_frames_at_the_end_are_not_one_that_is_unfinished() -> None:
    """A wrong length does not hide that a whole frame was there, and the beginning of another."""
    damaged = bytearray(FRAMES[0] + FRAMES[2] + FRAMES[4][:-1])
    damaged[len(FRAMES[0]) + 6] ^= 1
    frames, damages = parse(bytes(damaged))
    assert [found.payload for found in frames] == PAYLOADS[:1]
    assert damages == [Damage(len(FRAMES[0]), len(damaged), unfinished=False)]


@given(st.lists(st.tuples(st.binary(max_size=200), st.integers(0, 2**32 - 1))), st.binary(max_size=100))
def test_any_payloads(items: list[tuple[bytes, int]], junk: bytes) -> None:
    """Whatever bytes are framed come back, also with anything that is not a frame behind them."""
    data = b"".join(frame(payload, count) for payload, count in items)
    frames, damages = parse(data + junk)
    assert [(found.payload, found.count) for found in frames] == items
    assert bool(damages) == bool(junk)


@given(st.binary(max_size=2000))
def test_any_bytes(data: bytes) -> None:
    """Any bytes at all are parsed: what is found and what is damaged covers them without a gap."""
    frames, damages = parse(data)
    covered = sum(len(frame(found.payload, found.count)) for found in frames)
    assert covered + sum(damage.end - damage.start for damage in damages) == len(data)
