"""Frames that are read without the library must read as the library reads them."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from service.frames import begin_large_message, text_frame, whole_messages, wire_size
from tests.service.raw_peer import BINARY, CLOSE, CONT, PING, SIZES, TEXT, frame

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
def test_a_part_of_a_frame_is_left_to_the_library(size: int) -> None:
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
        frame(BINARY, bytes(LIMIT), masked=False)[:1000],
        frame(0x3),
        frame(BINARY, bytes(LIMIT + 1)),
    ],
    ids=[
        "begin",
        "continue",
        "ping",
        "close",
        "reserved",
        "unmasked",
        "unmasked and large",
        "opcode",
        "large",
    ],
)
def test_what_is_no_whole_message_is_left_to_the_library(data: bytes) -> None:
    """Fragments, control frames, what breaks the protocol and what is too large, alone and behind a message."""
    whole = frame(TEXT, b"{}")
    assert whole_messages(data, 0, LIMIT) == ([], 0)
    assert whole_messages(whole + data, 0, LIMIT) == ([(True, b"{}")], len(whole))
    assert begin_large_message(data, 0, LIMIT) is None


@given(st.binary(max_size=300) | st.binary(max_size=40).map(lambda payload: frame(TEXT, payload)))
def test_whatever_is_read_here_the_library_reads_alike(data: bytes) -> None:
    """Of any bytes, either nothing is taken or the very messages that the library finds."""
    found, end = whole_messages(data, 0, LIMIT)
    frames = by_the_library(data[:end])
    assert frames is not None
    assert [(each.opcode is Opcode.TEXT, bytes(each.data)) for each in frames] == found
    assert sum(wire_size(each) for each in frames) <= end


@pytest.mark.parametrize("step", [1, 3, 4, 1000, 65536])
def test_a_large_message_is_put_together_read_by_read(step: int) -> None:
    """Cut anywhere, with a whole message before it and a part of another behind it."""
    before, payload, behind = frame(TEXT, b"{}"), bytes(range(256)) * 200, frame(TEXT, b"[]")[:5]
    data = before + frame(BINARY, payload) + behind
    _, position = whole_messages(data[: len(before) + 20], 0, LIMIT)
    assert position == len(before)
    message = begin_large_message(data[: len(before) + 20], position, LIMIT)
    assert message is not None
    position += 20
    while not message.done:
        position += message.take(data[position : position + step])
    assert (message.text, bytes(message.payload)) == (False, payload)
    assert data[position:] == behind


@pytest.mark.parametrize(("size", "head"), [(40_000, 8), (80_000, 14)])
def test_a_large_message_is_begun_once_its_head_is_there(size: int, head: int) -> None:
    """Not with a part of its length or its mask, in either form of length; nor a short one, nor one that is whole."""
    data = frame(BINARY, bytes(size))
    for part in range(head):
        assert whole_messages(data[:part], 0, LIMIT) == ([], 0)
        assert begin_large_message(data[:part], 0, LIMIT) is None
    assert begin_large_message(data[:head], 0, LIMIT) is not None
    for other in (frame(BINARY, bytes(1000))[:head], data):
        assert begin_large_message(other, 0, LIMIT) is None


def test_what_is_announced_too_large_is_not_begun() -> None:
    """The library refuses it, by its head."""
    head = frame(BINARY, bytes(LIMIT + 1))[:100]
    assert begin_large_message(head, 0, LIMIT) is None
    assert begin_large_message(head, 0, LIMIT + 1) is not None


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_here_the_library_reads(size: int) -> None:
    """A reply is one final text frame with the shortest form of its length; a client's size is that on the wire."""
    payload = b"x" * size
    assert text_frame(payload) == frame(TEXT, payload, masked=False)
    frames = by_the_library(text_frame(payload), masked=False)
    assert frames is not None
    (read,) = frames
    assert (read.opcode, bytes(read.data), read.fin) == (Opcode.TEXT, payload, True)
    assert wire_size(read) == len(frame(TEXT, payload))
