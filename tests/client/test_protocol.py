"""The client's side of the wire protocol, without sockets."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.errors import InvalidRequest, ProtocolViolation, UnknownCommand
from client.protocol import Request, Unanswered, Welcome, encode, parse_reply, parse_welcome

V1 = Welcome("", "1.0", 1, frozenset({"predict", "emotions"}))
V2 = Welcome("", "2.0", 2, frozenset({"predict", "emotions"}))


def test_a_v1_image_goes_as_base64_in_a_text_frame() -> None:
    """A server of protocol 1 gets the image as base64 in one JSON object, with its id and no deadline."""
    frame, is_text = encode(Request("predict", {"token": "t"}, b"\xff\xd8image"), 7, V1, deadline_ms=100)
    assert is_text
    assert json.loads(frame) == {
        "command": "predict",
        "id": 7,
        "token": "t",
        "image": base64.b64encode(b"\xff\xd8image").decode(),
    }


def test_a_v2_image_goes_behind_a_one_line_header() -> None:
    """A server of protocol 2 gets a JSON header, a newline, and the image's bytes untouched."""
    frame, is_text = encode(Request("predict", {"detect": "never"}, b"\xff\xd8\nimage"), 7, V2, 100.5)
    assert not is_text
    header, _, image = frame.partition(b"\n")
    assert json.loads(header) == {"command": "predict", "id": 7, "detect": "never", "deadline_ms": 100.5}
    assert image == b"\xff\xd8\nimage"


def test_a_command_without_an_image_is_a_text_frame() -> None:
    """Commands other than predict are JSON in every version."""
    frame, is_text = encode(Request("emotions"), 1, V2, 100)
    assert (json.loads(frame), is_text) == ({"command": "emotions", "id": 1}, True)


def test_a_command_that_the_server_does_not_list_is_not_sent() -> None:
    """The error names the command, the server's version and what it has instead."""
    with pytest.raises(UnknownCommand, match=r"version 1.0.*'history'.*emotions, predict"):
        encode(Request("history"), 1, V1)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_json_has_no_word_for_is_not_sent(value: float) -> None:
    """It would be null, and "of all time" would be answered with the last hour."""
    with pytest.raises(InvalidRequest, match=r"'window_s' is (inf|nan)"):
        encode(Request("emotions", {"window_s": value}), 1, V2)


@pytest.mark.parametrize("value", [7, "mine", None])
def test_an_id_of_the_caller_s_is_not_sent(value: object) -> None:
    """The reply to it would be taken for one to nobody, and end the connection."""
    with pytest.raises(InvalidRequest, match="'id' is the client's own"):
        encode(Request("emotions", {"id": value}), 1, V2)


def test_a_server_that_lists_no_commands_is_asked_anyway() -> None:
    """Without a list there is nothing to judge by: the server's own answer decides."""
    frame, _ = encode(Request("history"), 1, Welcome("", "", 1, frozenset()))
    assert json.loads(frame)["command"] == "history"


def test_a_v1_welcome_is_protocol_1() -> None:
    """A welcome without the field `protocol` is of protocol 1."""
    welcome = parse_welcome('{"type":"welcome","message":"hi","version":"1.2","commands":{"predict":"…"}}')
    assert welcome == Welcome("hi", "1.2", 1, frozenset({"predict"}))


@pytest.mark.parametrize(
    ("fields", "commands"),
    [
        ('"protocol":"2"', []),
        ('"protocol":null', []),
        ('"commands":7', []),
        ('"commands":["predict",[],1]', ["1", "[]", "predict"]),
    ],
)
def test_a_welcome_of_the_wrong_form_is_of_protocol_1(fields: str, commands: list[str]) -> None:
    """Whatever stands in its fields, a client can go by it."""
    welcome = parse_welcome(f'{{"type":"welcome",{fields}}}')
    assert (welcome.protocol, sorted(welcome.commands)) == (1, commands)


@pytest.mark.parametrize("frame", ['{"type":"prediction"}', "hello", "[1]", b"\xff\xfe"])
def test_anything_else_is_no_welcome(frame: str | bytes) -> None:
    """The first message of a server is a welcome, or it is no VisionAI server."""
    with pytest.raises(ProtocolViolation):
        parse_welcome(frame)


@given(st.binary() | st.text())
def test_a_reply_is_an_object_or_a_violation(frame: str | bytes) -> None:
    """Whatever a server sends, reading it gives an object or the one documented error."""
    try:
        reply = parse_reply(frame)
    except ProtocolViolation:
        return
    assert isinstance(reply, dict)


def test_replies_with_ids_find_their_requests_in_any_order() -> None:
    """A reply's id decides which request it answers."""
    unanswered: Unanswered[str] = Unanswered(2)
    for number in (1, 2, 3):
        unanswered.add(number, f"request {number}", 10)
    assert unanswered.answer({"id": 3}) == "request 3"
    assert unanswered.answer({"id": 1}) == "request 1"
    assert unanswered.answer({"id": 2}) == "request 2"
    assert len(unanswered) == 0


def test_replies_without_ids_answer_in_order() -> None:
    """A server of protocol 1 answers in the order of the requests."""
    unanswered: Unanswered[str] = Unanswered(1)
    unanswered.add(1, "first", 10)
    unanswered.add(2, "second", 10)
    assert [unanswered.answer({}), unanswered.answer({})] == ["first", "second"]


@pytest.mark.parametrize("protocol", [1, 2])
def test_the_late_reply_of_an_abandoned_request_reaches_nobody(protocol: int) -> None:
    """A request that was given up keeps its place, so that its reply is not taken for the next one's."""
    unanswered: Unanswered[str] = Unanswered(protocol)
    unanswered.add(1, "abandoned", 10)
    unanswered.add(2, "waiting", 10)
    unanswered.give_up(1)
    assert unanswered.answer({"id": 1} if protocol == 2 else {}) is None
    assert unanswered.answer({"id": 2} if protocol == 2 else {}) == "waiting"


@pytest.mark.parametrize(
    ("protocol", "reply"), [(2, {}), (2, {"id": 9}), (2, {"id": "x"}), (1, {}), (1, {"id": 9})]
)
def test_a_reply_to_nothing_is_a_violation(protocol: int, reply: dict[str, object]) -> None:
    """A reply that answers no request would be taken for another's: the connection cannot go on."""
    unanswered: Unanswered[str] = Unanswered(protocol)
    if protocol == 2:
        unanswered.add(1, "waiting", 10)
    with pytest.raises(ProtocolViolation):
        unanswered.answer(reply)


def test_the_largest_request_is_taken_out() -> None:
    """When a message was too big, the largest unanswered one was; the others are left."""
    unanswered: Unanswered[str] = Unanswered(2)
    unanswered.add(1, "small", 10)
    unanswered.add(2, "large", 1000)
    assert unanswered.take_largest() == "large"
    assert unanswered.take_all() == ["small"]
    assert unanswered.take_largest() is None


def test_taking_all_leaves_out_abandoned_requests() -> None:
    """Only those who still wait need to be told."""
    unanswered: Unanswered[str] = Unanswered(2)
    unanswered.add(1, "abandoned", 10)
    unanswered.add(2, "waiting", 10)
    unanswered.give_up(1)
    assert unanswered.take_all() == ["waiting"]
    assert len(unanswered) == 0


def test_a_requests_own_token_goes_before_the_clients() -> None:
    """As of a program that asks for several users; what no user's answer depends on takes none."""
    assert Request("history", {"token": "own"}).of("client's").fields == {"token": "own"}
    assert Request("history").of("client's").fields == {"token": "client's"}
    assert Request("health").of("client's").fields == {}
