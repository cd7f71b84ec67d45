"""The WebSocket protocol, seen by a client that shares no code with the server: the Autobahn test suite's cases.

The suite's own client runs on Python 2 only. Its cases are sent as raw frames and the server's frames are read with
wsproto. The suite expects an echo; we expect our reply to a message: of text that is no JSON `invalid_json`, of bytes
that are no image `invalid_image`. Section numbers are the suite's.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import orjson
import pytest

from tests.service.harness import FACE, Serve, ServiceProcess, predict_message
from tests.service.raw_peer import BINARY, CLOSE, CONT, PING, PONG, SIZES, TEXT, Peer, close, connected, frame


@pytest.fixture
async def peer(service_process: ServiceProcess) -> AsyncIterator[Peer]:
    """A peer of a service with the default settings."""
    async with connected(service_process.port) as opened:
        yield opened


@pytest.mark.parametrize("chop", [0, 997])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("opcode", "code"), [(TEXT, "invalid_json"), (BINARY, "invalid_image")])
async def test_messages_of_every_size(peer: Peer, opcode: int, code: str, size: int, chop: int) -> None:
    """1.1, 1.2: every form of the length, sent at once or in pieces."""
    peer.send(frame(opcode, b"*" * size), chop=chop)
    assert await peer.error() == code
    await peer.is_served()


async def test_a_message_byte_by_byte(peer: Peer) -> None:
    """1.1.8, 2.6: frames do not come with the network's packets."""
    peer.send(frame(PING, b"ping"), frame(TEXT, b"no json"), chop=1)
    assert await peer.pong() == b"ping"
    assert await peer.error() == "invalid_json"


@pytest.mark.parametrize("payload", [b"", b"Hello", bytes(range(0, 250, 2)), b"\xfe" * 125])
async def test_a_ping_is_answered_with_its_payload(peer: Peer, payload: bytes) -> None:
    """2.1 to 2.4."""
    peer.send(frame(PING, payload))
    assert await peer.pong() == payload
    await peer.is_served()


async def test_a_ping_with_a_payload_that_is_too_large(peer: Peer) -> None:
    """2.5: control frames hold at most 125 bytes."""
    peer.send(frame(PING, b"\xfe" * 126))
    assert await peer.closed() == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY, CONT, PING])
async def test_what_breaks_the_protocol_is_not_waited_for(peer: Peer, opcode: int) -> None:
    """A frame's head tells: of the megabytes that it announces none is read."""
    head = struct.pack("!BBQ", 0xC0 | opcode, 0x80 | 127, 10_000_000)
    peer.send(head + bytes(4))
    assert await peer.closed() == 1002


@pytest.mark.parametrize("payload", [b"", b"unasked for"])
async def test_a_pong_that_nobody_asked_for(peer: Peer, payload: bytes) -> None:
    """2.7 to 2.9: passed over, and pings after it are answered."""
    peer.send(frame(PONG, payload), frame(PING, b"1"))
    assert await peer.pong() == b"1"


@pytest.mark.parametrize("chop", [0, 1])
async def test_pings_in_a_row(peer: Peer, chop: int) -> None:
    """2.10, 2.11: each is answered, in order."""
    peer.send(*(frame(PING, b"%d" % number) for number in range(10)), chop=chop)
    for number in range(10):
        assert await peer.pong() == b"%d" % number


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
async def test_reserved_bits(peer: Peer, opcode: int, rsv: int) -> None:
    """3: no extension is negotiated."""
    peer.send(frame(opcode, b"", rsv=rsv))
    assert await peer.closed() == 1002


@pytest.mark.parametrize("payload", [b"", b"payload"])
@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
async def test_reserved_opcodes(peer: Peer, opcode: int, payload: bytes) -> None:
    """4."""
    peer.send(frame(TEXT, b"x"))
    assert await peer.error() == "invalid_json"
    peer.send(frame(opcode, payload), frame(PING))
    assert await peer.closed() == 1002


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
async def test_a_control_frame_in_fragments(peer: Peer, opcode: int) -> None:
    """5.1, 5.2."""
    peer.send(frame(opcode, b"", fin=False), frame(CONT, b""))
    assert await peer.closed() == 1002


@pytest.mark.parametrize("chop", [0, 1])
@pytest.mark.parametrize(("opcode", "code"), [(TEXT, "invalid_json"), (BINARY, "invalid_image")])
async def test_a_message_in_fragments(peer: Peer, opcode: int, code: str, chop: int) -> None:
    """5.3 to 5.8: pings between fragments are answered at once, empty fragments are fragments."""
    peer.send(
        frame(opcode, b"frag", fin=False),
        frame(PING, b"1"),
        frame(CONT, b"", fin=False),
        frame(PING, b"2"),
        frame(CONT, b"ment"),
        chop=chop,
    )
    assert await peer.pong() == b"1"
    assert await peer.pong() == b"2"
    assert await peer.error() == code
    await peer.is_served()


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
async def test_a_prediction_in_fragments(peer: Peer, size: int) -> None:
    """9.3: the fragments of a request are the request."""
    message = predict_message(FACE, detect="never").encode()
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    peer.send(
        frame(TEXT, pieces[0], fin=False),
        *(frame(CONT, piece, fin=False) for piece in pieces[1:]),
        frame(CONT),
    )
    assert (await peer.reply())["emotion_name"] == "happy"


@pytest.mark.parametrize("fin", [True, False])
async def test_a_continuation_of_nothing(peer: Peer, fin: bool) -> None:
    """5.9 to 5.14: also after a message that is complete."""
    peer.send(frame(TEXT, b"x"))
    assert await peer.error() == "invalid_json"
    peer.send(frame(CONT, b"rest", fin=fin))
    assert await peer.closed() == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_a_message_inside_a_message(peer: Peer, opcode: int) -> None:
    """5.15 to 5.20: only control frames may come between fragments."""
    peer.send(frame(TEXT, b"x", fin=False), frame(opcode, b"y"))
    assert await peer.closed() == 1002


async def test_a_message_inside_a_message_that_comes_by_itself(peer: Peer) -> None:
    """5.18, in a read of its own."""
    peer.send(frame(TEXT, b"fragment", fin=False), frame(PING))
    await peer.pong()
    peer.send(frame(TEXT, b"{}"))
    assert await peer.closed() == 1002


async def test_the_rest_of_a_message_that_looks_like_another(peer: Peer) -> None:
    """Of a frame that comes in two reads the second is not taken for a frame of its own."""
    message = frame(TEXT, b"no JSON")
    head = bytes([0x80 | BINARY, 0x80 | len(message)]) + bytes(4)  # a mask of zeros leaves it as it is
    peer.send(frame(PING), head)
    await peer.pong()
    peer.send(message)
    assert await peer.error() == "invalid_image"
    await peer.is_served()


VALID_UTF_8 = [
    "Hello-µ@ßöäüàá-UTF-8!!",
    "κόσμε",
    "\0\x7f\x80߿ࠀ￿𐀀\U0010ffff",
    "\ud7ff\ue000�\ufdd0\ufffe",
    "\U0001fffe\U0010fffd",
]
INVALID_UTF_8 = [
    b"\xce\xba\xed\xa0\x80edited",
    b"\xed\xa0\x80",
    b"\xed\xaf\xbf\xed\xb0\x80",
    b"\xf4\x90\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\x80",
    b"\xbf\x80",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xf0\x80\x80\x80",
    b"\xc1\xbf",
    b"\xfe\xff",
    b"\xce\xba\xe1\xbd",
    b"\xf0\x90\x80",
]


@pytest.mark.parametrize("text", VALID_UTF_8)
@pytest.mark.parametrize("fragment", [0, 1, 3])
async def test_text_is_utf_8(peer: Peer, text: str, fragment: int) -> None:
    """6.1, 6.2, 6.5 to 6.23: characters may be cut by fragments."""
    message = orjson.dumps({"command": "ping", "id": text})
    if fragment:
        pieces = [message[at : at + fragment] for at in range(0, len(message), fragment)]
        peer.send(
            frame(TEXT, b"", fin=False), *(frame(CONT, each, fin=False) for each in pieces), frame(CONT)
        )
    else:
        peer.send(frame(TEXT, message))
    assert (await peer.reply())["id"] == text


@pytest.mark.parametrize("data", INVALID_UTF_8)
@pytest.mark.parametrize("fragment", [0, 1])
async def test_text_that_is_not_utf_8(peer: Peer, data: bytes, fragment: int) -> None:
    """6.3, 6.6 to 6.23: closed with 1007. What came before is answered first."""
    peer.send(frame(TEXT, b"x"))
    if fragment:
        pieces = [data[at : at + 1] for at in range(len(data))]
        peer.send(
            frame(TEXT, b"", fin=False), *(frame(CONT, each, fin=False) for each in pieces), frame(CONT)
        )
    else:
        peer.send(frame(TEXT, data))
    assert await peer.error() == "invalid_json"
    assert await peer.closed() == 1007


async def test_the_first_wrong_byte_closes(peer: Peer) -> None:
    """6.4: a fragment that can be no UTF-8 is not waited for to the message's end."""
    peer.send(
        frame(TEXT, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4", fin=False),
        frame(CONT, b"\x90", fin=False),
    )
    assert await peer.closed() == 1007


async def test_binary_may_hold_anything(peer: Peer) -> None:
    """6: only text is UTF-8."""
    peer.send(frame(BINARY, INVALID_UTF_8[0], fin=False), frame(CONT, b"\xff"))
    assert await peer.error() == "invalid_image"


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
)
async def test_a_close_is_answered_with_its_code(peer: Peer, code: int) -> None:
    """7.1, 7.7."""
    peer.send(close(code, b"bye"))
    assert await peer.closed() == code


async def test_a_close_without_a_code(peer: Peer) -> None:
    """7.3.1: answered without one; 1005 stands for none."""
    peer.send(close())
    assert await peer.closed() == 1005


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
async def test_a_close_with_a_code_that_must_not_be_sent(peer: Peer, code: int) -> None:
    """7.9, 7.13."""
    peer.send(close(code))
    assert await peer.closed() == 1002


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x03", 1002),
        (struct.pack("!H", 1000) + b"r" * 123, 1000),
        (struct.pack("!H", 1000) + b"r" * 124, 1002),
        (struct.pack("!H", 1000) + b"\xce\xba\xed\xa0\x80", 1007),
    ],
    ids=["half a code", "the longest reason", "too long a reason", "a reason that is not UTF-8"],
)
async def test_what_a_close_may_hold(peer: Peer, payload: bytes, code: int) -> None:
    """7.3, 7.5."""
    peer.send(frame(CLOSE, payload))
    assert await peer.closed() == code


async def test_nothing_is_answered_after_a_close(peer: Peer) -> None:
    """7.1.2 to 7.1.5: neither a message nor a ping, nor a second close."""
    peer.send(close(1000), frame(TEXT, b"x"), frame(PING), close(1000))
    assert await peer.closed() == 1000


async def test_a_close_in_the_middle_of_a_message(peer: Peer) -> None:
    """7.1.6: what was not complete is forgotten, and the close is answered as any other."""
    peer.send(frame(TEXT, b"x", fin=False), close(1000))
    assert await peer.closed() == 1000


async def test_a_frame_without_a_mask(peer: Peer) -> None:
    """RFC 6455, section 5.1: a server closes the connection of a client that does not mask."""
    peer.send(frame(TEXT, b"x", masked=False))
    assert await peer.closed() == 1002


@pytest.mark.parametrize("fragments", [1, 5])
async def test_the_largest_message(serve: Serve, fragments: int) -> None:
    """9: a message of the limit's size is read, whole or in fragments; with one byte more it is 1009."""
    limit = 10_000
    async with serve(max_message_bytes=limit) as running:
        for size, code in ((limit, None), (limit + 1, 1009)):
            async with connected(running.port) as peer:
                step = -(-size // fragments)
                pieces = [b"*" * min(step, size - at) for at in range(0, size, step)]
                last = len(pieces) - 1
                peer.send(*(frame(CONT if n else TEXT, each, fin=n == last) for n, each in enumerate(pieces)))
                if code is None:
                    assert await peer.error() == "invalid_json"
                else:
                    assert await peer.closed() == code


@pytest.mark.parametrize("size", [2**31, 2**62])
async def test_a_message_that_is_announced_as_endless(peer: Peer, size: int) -> None:
    """9: refused by its announced size, before any of it is waited for."""
    peer.send(struct.pack("!BBQ", 0x80 | BINARY, 0x80 | 127, size))
    assert await peer.closed() == 1009


async def test_replies_keep_their_order_among_many_messages(peer: Peer) -> None:
    """10: a hundred messages in one packet."""
    peer.send(*(frame(TEXT, orjson.dumps({"command": "ping", "id": number})) for number in range(100)))
    assert [(await peer.reply())["id"] for _ in range(100)] == list(range(100))
