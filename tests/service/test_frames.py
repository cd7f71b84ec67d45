"""Frames that are read without the library must read as the library reads them."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from service.network.frames import (
    Breach,
    IncomingFrame,
    LargeMessage,
    begin_frame,
    control_frames,
    text_frame,
    whole_messages,
)
from tests.service.raw_peer import BINARY, CLOSE, CONT, PING, PONG, SIZES, TEXT, frame

LIMIT = 100_000


def by_the_library(data: bytes, *, masked: bool = True) -> list[Frame] | None:
    """All frames in the bytes; None if they do not end with a frame, or are none."""
    reader = StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    frames = []
    while reader.buffer:
        step: Generator[None, None, Frame] = Frame.parse(reader.read_exact, mask=masked, max_size=LIMIT)
        try:
            next(step)
        except StopIteration as done:
            frames.append(done.value)
        except (EOFError, ProtocolError):
            return None
    return frames


@pytest.mark.parametrize("size", SIZES)
def test_a_whole_message_is_read_in_each_form_of_length(size: int) -> None:
    """Text and bytes, in the lengths at which their form changes, alone and one behind the other."""
    text, image = b"x" * size, b"\xff" * size
    both = frame(BINARY, image) + frame(TEXT, text)
    assert whole_messages(both, 0, LIMIT) == ([(False, image), (True, text)], len(both))
    assert whole_messages(both, len(both) - len(frame(TEXT, text)), LIMIT) == ([(True, text)], len(both))


@pytest.mark.parametrize("size", SIZES)
def test_a_part_of_a_frame_is_no_whole_message(size: int) -> None:
    """However much is missing at the end, and also when a whole message comes before it."""
    payload = b"x" * size
    whole = frame(TEXT, payload)
    for missing in {1, 2, 5, len(whole) // 2, len(whole) - 1} - {0}:
        assert whole_messages(whole[:-missing], 0, LIMIT) == ([], 0)
        assert whole_messages(whole + whole[:-missing], 0, LIMIT) == ([(True, payload)], len(whole))


@pytest.mark.parametrize(
    "data",
    [
        frame(TEXT, b"{}", fin=False),
        frame(CONT, b"{}"),
        frame(PING),
        frame(CLOSE, b"\x03\xe8"),
        frame(TEXT, b"{}", rsv=4),
        frame(TEXT, b"{}", masked=False),
        frame(0x3),
        frame(BINARY, bytes(LIMIT + 1)),
    ],
    ids=["begin", "continue", "ping", "close", "reserved", "unmasked", "opcode", "large"],
)
def test_what_is_no_whole_message_is_not_taken_for_one(data: bytes) -> None:
    """Fragments, control frames, what breaks the protocol and what is too large, whatever is before and behind it."""
    whole = frame(TEXT, b"{}")
    for behind in (b"", bytes(300)):
        assert whole_messages(data + behind, 0, LIMIT) == ([], 0)
    assert whole_messages(whole + data, 0, LIMIT) == ([(True, b"{}")], len(whole))


def test_no_more_messages_are_taken_than_asked_for() -> None:
    """The rest is for the next look, also where it came in the same read."""
    whole = frame(TEXT, b"{}")
    assert whole_messages(whole * 3, 0, LIMIT, 2) == ([(True, b"{}")] * 2, 2 * len(whole))


@given(st.binary(max_size=300) | st.binary(max_size=40).map(lambda payload: frame(TEXT, payload)))
def test_whatever_is_read_here_the_library_reads_alike(data: bytes) -> None:
    """Of any bytes, either nothing is taken or the very messages that the library finds."""
    found, end = whole_messages(data, 0, LIMIT)
    frames = by_the_library(data[:end])
    assert frames is not None
    assert [(each.opcode is Opcode.TEXT, bytes(each.data)) for each in frames] == found


@given(
    st.lists(st.tuples(st.sampled_from([PING, PONG, CLOSE]), st.binary(max_size=125)), max_size=5), st.data()
)
def test_control_frames_are_found_as_the_library_finds_them(
    frames: list[tuple[int, bytes]], data: st.DataObject
) -> None:
    """Those that are whole, and no more than asked for; what follows is not looked at."""
    wire = b"".join(frame(opcode, payload) for opcode, payload in frames)
    cut = data.draw(st.integers(0, len(wire)))
    count, end = control_frames(wire[:cut], 0, 3)
    found = by_the_library(wire[:end])
    assert found is not None
    assert [(each.opcode, bytes(each.data)) for each in found] == frames[:count]
    assert count <= 3
    if count < min(3, len(frames)):
        assert cut < end + len(frame(*frames[count]))
    assert control_frames(wire + frame(TEXT, b"{}"), 0, 9) == (len(frames), len(wire))


@pytest.mark.parametrize("step", [1, 3, 4, 1000, 65536])
@pytest.mark.parametrize(
    ("opcode", "fin", "continued"),
    [
        (BINARY, True, False),
        (TEXT, True, False),
        (TEXT, False, False),
        (CONT, False, True),
        (CONT, True, True),
    ],
    ids=["binary", "text", "first", "middle", "last"],
)
def test_a_frame_is_put_together_read_by_read(opcode: int, fin: bool, continued: bool, step: int) -> None:
    """A message or a fragment of one, cut anywhere, with something before it and a part of another behind it."""
    before, payload, behind = frame(TEXT, b"{}"), bytes(range(256)) * 200, frame(TEXT, b"[]")[:5]
    data = before + frame(opcode, payload, fin=fin) + behind
    begun = begin_frame(data, len(before), LIMIT, continued=continued)
    assert begun is not None
    position, parts = begun.start, []
    while begun.left:
        parts.append(begun.take(data[position : position + step], 0))
        position += len(parts[-1])
    assert b"".join(parts) == payload
    assert (begun.text, begun.is_final, begun.is_short) == (opcode == TEXT, fin, False)
    assert isinstance(begun, LargeMessage) is (fin and not continued)
    assert not isinstance(begun, LargeMessage) or bytes(begun.payload) == payload
    assert data[position:] == behind


@pytest.mark.parametrize("size", [0, 125, 126, 40_000, 80_000])
def test_a_frame_is_begun_once_its_head_is_there(size: int) -> None:
    """Not with a part of its length or its mask, in each form of length; only a short one is called so."""
    data = frame(CONT, bytes(size))
    head = len(data) - size
    for part in range(1, head):
        assert begin_frame(data[:part], 0, LIMIT, continued=True) is None
    begun = begin_frame(data[:head], 0, LIMIT, continued=True)
    assert isinstance(begun, IncomingFrame)
    assert (begun.left, begun.is_short) == (size, size < 126)


def test_the_beginning_of_a_control_frame_is_waited_for() -> None:
    """It is read when it is whole."""
    ping = frame(PING, b"payload")
    for part in range(1, len(ping)):
        assert control_frames(ping[:part], 0, 9) == (0, 0)
        assert begin_frame(ping[:part], 0, LIMIT, continued=part % 2 == 0) is None


@pytest.mark.parametrize(
    ("data", "continued", "code"),
    [
        (frame(TEXT, b"{}", rsv=4)[:1], False, 1002),
        (frame(PING, rsv=1)[:1], False, 1002),
        (frame(0x3)[:1], False, 1002),
        (frame(0xB)[:1], True, 1002),
        (frame(PING, fin=False)[:1], False, 1002),
        (frame(CONT)[:1], False, 1002),
        (frame(TEXT, fin=False)[:1], True, 1002),
        (frame(BINARY)[:1], True, 1002),
        (frame(TEXT, b"{}", masked=False)[:2], False, 1002),
        (frame(PING, masked=False)[:2], False, 1002),
        (frame(PING, bytes(126))[:2], False, 1002),
        (frame(BINARY, bytes(LIMIT + 1))[:10], False, 1009),
        (frame(CONT, bytes(LIMIT + 1))[:10], True, 1009),
    ],
)
def test_what_no_client_may_send_is_seen_by_its_head(data: bytes, continued: bool, code: int) -> None:
    """Before its payload is waited for, or whatever follows: reserved bits, out of turn, no mask, and too large."""
    for behind in (b"", bytes(300)):
        assert control_frames(data + behind, 0, 9) == (0, 0)
        with pytest.raises(Breach) as breach:
            begin_frame(data + behind, 0, LIMIT, continued=continued)
        assert breach.value.code == code


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_here_the_library_reads(size: int) -> None:
    """A reply is one final text frame with the shortest form of its length."""
    payload = b"x" * size
    assert text_frame(payload) == frame(TEXT, payload, masked=False)
    frames = by_the_library(text_frame(payload), masked=False)
    assert frames is not None
    (read,) = frames
    assert (read.opcode, bytes(read.data), read.fin) == (Opcode.TEXT, payload, True)
