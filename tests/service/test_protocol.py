"""The wire protocol, without sockets."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.scheduler import LOW
from service.errors import InvalidRequest, Overloaded
from service.protocol import replies
from service.protocol.replies import PredictionReplies, ScoredFace, Timing
from service.protocol.requests import (
    MAX_HEADER_BYTES,
    FrameError,
    History,
    Options,
    Predict,
    Query,
    Stats,
    parse_frame,
)
from service.security.credentials import MAX_LENGTH

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def error_of(frame: str | bytes) -> FrameError:
    with pytest.raises(FrameError) as caught:
        parse_frame(frame)
    return caught.value


def test_null_is_as_if_the_field_was_not_there() -> None:
    """In every command, where a field may be left out."""
    names = "command id detect max_faces deadline_ms priority token limit cursor window_s buckets scope"
    nothing = dict.fromkeys(names.split())
    assert parse_frame(orjson.dumps(nothing | {"image": "aGk="}).decode()) == Predict(None, "aGk=")
    for command in ("history", "stats", "health"):
        full, bare = nothing | {"command": command}, {"command": command}
        assert parse_frame(orjson.dumps(full).decode()) == parse_frame(orjson.dumps(bare).decode())
    options = Options(
        detect="never", max_faces=3, ordered=False, stream=True, smoothing_ms=5.0, deadline_ms=7.0
    )
    assert options.changed(dict.fromkeys(("detect", "max_faces", "ordered", "stream"))) == options
    assert options.changed({"smoothing_ms": None, "deadline_ms": None}) == replace(
        options, smoothing_ms=None, deadline_ms=None
    )


def test_a_missing_command_means_predict() -> None:
    """v1 clients may leave the command out."""
    assert parse_frame('{"image": "aGk="}') == Predict(None, "aGk=")


def test_an_id_is_read_from_any_request() -> None:
    """The id comes back with every kind of request."""
    assert parse_frame('{"id": "a-1", "image": "aGk="}') == Predict("a-1", "aGk=")
    assert parse_frame('{"id": 7, "command": "health"}') == Query(7, "health")
    for identifier in ("x" * 128, 2**53 - 1, 1 - 2**53):
        assert parse_frame(orjson.dumps({"id": identifier, "image": ""}).decode()) == Predict(identifier, "")


def test_a_whole_number_is_an_integer_with_or_without_a_point() -> None:
    """JSON does not tell 4.0 from 4, and some languages write each number like that."""
    assert parse_frame('{"id": 7.0, "image": "", "max_faces": 4.0}') == Predict(7, "", max_faces=4)
    assert parse_frame('{"command": "history", "limit": 5.0}') == History(None, 5)


def test_each_field_of_a_prediction_is_read() -> None:
    """All at once, beside an image in base64 and behind a binary frame's header."""
    fields = {
        "command": "predict",
        "id": 1,
        "deadline_ms": 20,
        "priority": "low",
        "detect": "never",
        "max_faces": 64,
        "token": "t",
    }
    text = Predict(1, "aGk=", 20.0, LOW, "never", 64, "t")
    assert parse_frame(orjson.dumps(fields | {"image": "aGk="}).decode()) == text
    assert parse_frame(orjson.dumps(fields) + b"\nhi") == replace(text, image=b"hi")


@pytest.mark.parametrize("command", ["predict", "health", "configure", "history"])
def test_a_request_does_not_show_its_token(command: str) -> None:
    """However it comes into a log."""
    image = {"image": ""} if command == "predict" else {}
    request = parse_frame(orjson.dumps({"command": command, "token": "s3cret"} | image).decode())
    assert request.token == "s3cret"
    assert "s3cret" not in repr(request)


@pytest.mark.parametrize("command", ["emotions", "model_info", "health"])
def test_queries_need_no_other_field(command: str) -> None:
    """Each query of v1 is its command alone."""
    assert parse_frame(orjson.dumps({"command": command}).decode()) == Query(None, command)


def test_pretty_printed_json_is_json() -> None:
    """A text frame may hold line breaks."""
    assert parse_frame('{\n  "image": "aGk="\n}') == Predict(None, "aGk=")


def test_unknown_fields_are_passed_over() -> None:
    """v1 clients send fields of their own."""
    assert parse_frame('{"image": "aGk=", "camera": {"a": [1]}}') == Predict(None, "aGk=")


@pytest.mark.parametrize(
    ("frame", "code", "hint"),
    [
        ("hello", "invalid_json", "not JSON"),
        ("", "invalid_json", "not JSON"),
        ('{"image": "aGk="', "invalid_json", "not JSON"),
        ('{"image": NaN}', "invalid_json", "not JSON"),
        ("[" * 100_000, "invalid_json", "not JSON"),
        ("[1, 2]", "invalid_request", "an array"),
        ('"predict"', "invalid_request", "a string"),
        ("3", "invalid_request", "a number"),
        ("null", "invalid_request", "null"),
        ('{"command": "dance"}', "unknown_command", "predict, emotions, model_info, health"),
        ('{"command": 5}', "unknown_command", "a number"),
        ('{"command": "configure", "tokn": ""}', "invalid_request", "deadline_ms, token can"),
        ('{"command": ["predict"]}', "unknown_command", "an array"),
        ('{"command": "predict"}', "invalid_request", "'image' is missing"),
        ('{"command": null}', "invalid_request", "'image' is missing"),
        ('{"image": null}', "invalid_request", "'image'"),
        ('{"image": 12}', "invalid_request", "'image'"),
        ('{"image": {"data": ""}}', "invalid_request", "'image' is a base64 string, not an object"),
        ('{"image": "", "deadline_ms": "soon"}', "invalid_request", "'deadline_ms'"),
        ('{"image": "", "deadline_ms": 0}', "invalid_request", "'deadline_ms'"),
        ('{"image": "", "deadline_ms": true}', "invalid_request", "'deadline_ms'"),
        ('{"image": "", "detect": "maybe"}', "invalid_request", "'detect'"),
        ('{"image": "", "detect": true}', "invalid_request", "'detect'"),
        ('{"image": "", "max_faces": 0}', "invalid_request", "'max_faces'"),
        ('{"image": "", "max_faces": 65}', "invalid_request", "'max_faces'"),
        ('{"image": "", "max_faces": "all"}', "invalid_request", "'max_faces'"),
        ('{"image": "", "priority": "urgent"}', "invalid_request", "'priority'"),
        ('{"image": "", "priority": ["high"]}', "invalid_request", "'priority'"),
        ('{"id": true, "image": ""}', "invalid_request", "'id'"),
        ('{"id": 1.5, "image": ""}', "invalid_request", "'id'"),
        ('{"id": [1], "image": ""}', "invalid_request", "'id'"),
        (f'{{"id": "{"x" * 129}", "image": ""}}', "invalid_request", "'id'"),
        (f'{{"id": {2**53}, "image": ""}}', "invalid_request", "'id'"),
        (f'{{"id": {-(2**53)}, "image": ""}}', "invalid_request", "'id'"),
        (b'{"id": 1}', "invalid_request", "newline"),
        (b'{"id": 1' + b" " * 20_000 + b"}\n", "invalid_request", "newline"),
        (b"{nothing}\n\xff\xd8\xff", "invalid_json", "header, up to its first newline, is not JSON"),
        (b'{"id": 1}\xff\xd8\xff\n\x11', "invalid_json", "header, up to its first newline, is not JSON"),
        (b'{\n"id": 1\n}\n\xff\xd8\xff', "invalid_json", "header, up to its first newline, is not JSON"),
    ],
)
def test_a_bad_frame_is_named_by_its_code(frame: str | bytes, code: str, hint: str) -> None:
    """Whatever is wrong with a frame has a stable code and a message that says what."""
    error = error_of(frame).error
    assert error.code == code
    assert hint in error.message


@pytest.mark.parametrize("values", ["[]," * 140_000, '"x",' * 110_000, ("[" * 900 + "]" * 900 + ",") * 300])
def test_a_large_message_of_many_values_is_not_parsed(values: str) -> None:
    """Making objects of 16 MB of them would take seconds, for which all others wait."""
    error = error_of(f'{{"image": "", "id": 1, "more": [{values} 0]}}')
    assert error.error.code == "invalid_request"
    assert "values" in error.error.message
    assert error.id is None


@pytest.mark.parametrize(
    ("head", "request_id"),
    [
        ('{"id":1', 1),
        ('{"command":"predict","id":-7', -7),
        ('{\n "command" : "predict", "id" : "a\u00e9-1" ', "a\u00e9-1"),
        ('{"idle":1', None),
        ('{"more":{"id":1}', None),
        ('{"id":1.5', None),
        ('{"id":007', None),
        (f'{{"id":{2**53}', None),
    ],
)
def test_a_message_that_is_refused_unparsed_has_its_id_where_it_begins_with_that(
    head: str, request_id: int | str | None
) -> None:
    """Or with the command before it: a message of many values, or one whose header is too long; it is told that."""
    text = error_of(f'{head}, "more": [{"[]," * 140_000} 0]}}')
    assert (text.id, text.error.code) == (request_id, "invalid_request")
    assert "values" in text.error.message
    header = f'{head}, "more": "{"x" * MAX_HEADER_BYTES}"}}'.replace("\n", " ")
    binary = error_of(header.encode() + b"\nimage")
    assert (binary.id, binary.error.code) == (request_id, "invalid_request")
    assert "header has at most" in binary.error.message


def test_a_large_image_may_have_some_thousand_values_beside_it() -> None:
    """Such as landmarks, which are ignored."""
    more = [[x, 2 * x] for x in range(4000)]
    image = "A" * 500_000
    assert parse_frame(orjson.dumps({"id": 1, "image": image, "landmarks": more}).decode()) == Predict(
        1, image
    )


def test_an_error_carries_the_id_where_it_could_be_read() -> None:
    """A client that pipelines can tell which request failed."""
    assert error_of('{"id": "q", "command": "dance"}').id == "q"
    assert error_of('{"id": 9, "image": 1}').id == 9
    assert error_of("not json").id is None


def test_a_binary_frame_is_an_image() -> None:
    """Bytes that don't start with a header are a predict of these bytes."""
    assert parse_frame(b"\xff\xd8\xff\xe0rest") == Predict(None, b"\xff\xd8\xff\xe0rest")


def test_a_binary_frame_may_start_with_a_header_line() -> None:
    """A one-line JSON header carries the id; the image follows its newline untouched."""
    assert parse_frame(b'{"id": 3, "deadline_ms": 20}\n\xff\xd8\n\x00') == Predict(3, b"\xff\xd8\n\x00", 20.0)


def test_a_header_line_is_read_up_to_its_bound() -> None:
    """As many bytes as the protocol says, the newline not among them: the longest token has room."""
    line = orjson.dumps({"id": 1, "token": "t" * MAX_LENGTH}).ljust(MAX_HEADER_BYTES)
    assert parse_frame(line + b"\nimage") == Predict(1, b"image", token="t" * MAX_LENGTH)
    assert error_of(line + b" \nimage").error.code == "invalid_request"


@given(st.text() | st.binary() | st.text(string.printable).map(lambda text: "{" + text))
def test_any_frame_is_a_request_or_a_frame_error(frame: str | bytes) -> None:
    """The parser raises nothing else, whatever it is given."""
    try:
        parsed = parse_frame(frame)
    except FrameError as exc:
        assert orjson.loads(replies.error_reply(exc.error, exc.id))["code"] == exc.error.code
    else:
        assert isinstance(parsed, Predict | Query)


@given(st.dictionaries(st.sampled_from(["id", "command", "image", "deadline_ms", "token"]), JSON_VALUES))
def test_any_object_is_a_request_or_a_frame_error(message: dict[str, Any]) -> None:
    """Fields of any type and value give a request with an echoable id, or an error with a code."""
    frame = orjson.dumps(message, option=orjson.OPT_NON_STR_KEYS).decode() if _encodable(message) else "{}"
    try:
        parsed = parse_frame(frame)
    except FrameError as exc:
        assert exc.id is None or exc.id == message["id"]
    else:
        assert parsed.id == message.get("id")


def _encodable(value: object) -> bool:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return False
    return True


STORED = "12345678-1234-5678-1234-567812345678"
REPLIES = PredictionReplies(
    ("angry", "happy"), "v1.0.0", datetime(2026, 11, 22, 10, 30, 45, 123456, tzinfo=UTC)
)
WHOLE = [ScoredFace([0.25, 0.75])]
TIMING = Timing(decode=0.1, queue=0.05, inference=0.3, total=0.45123, batch_size=2)


def test_a_prediction_reply_has_every_field_of_v1_and_ours() -> None:
    """The reply's fields and their forms are the contract."""
    assert orjson.loads(REPLIES.reply("a", STORED, WHOLE, TIMING)) == {
        "type": "prediction",
        "status": "success",
        "id": "a",
        "emotion_name": "happy",
        "confidence": 0.75,
        "model_version_tag": "v1.0.0",
        "processing_time_ms": 1,
        "timestamp": "2026-11-22T10:30:45.123456",
        "prediction_id": STORED,
        "probabilities": {"angry": 0.25, "happy": 0.75},
        "face_detected": False,
        "faces": [],
        "timing": {"decode": 0.1, "queue": 0.05, "inference": 0.3, "total": 0.451, "batch_size": 2},
    }


def test_each_face_has_its_box_and_its_own_emotion() -> None:
    """The first face is what v1's fields tell of."""
    faces = [ScoredFace([0.9, 0.1], (1, 2, 30, 40), 0.97), ScoredFace([0.2, 0.8], (50, 60, 20, 20), 0.81)]
    reply = orjson.loads(REPLIES.reply(None, STORED, faces, TIMING))
    assert reply["face_detected"] is True
    assert reply["emotion_name"] == "angry"
    assert reply["faces"] == [
        {
            "box": [1, 2, 30, 40],
            "detection_score": 0.97,
            "emotion_name": "angry",
            "confidence": 0.9,
            "probabilities": {"angry": 0.9, "happy": 0.1},
        },
        {
            "box": [50, 60, 20, 20],
            "detection_score": 0.81,
            "emotion_name": "happy",
            "confidence": 0.8,
            "probabilities": {"angry": 0.2, "happy": 0.8},
        },
    ]


def test_a_prediction_that_was_not_stored_has_a_null_id() -> None:
    """No client holds an id that is not in the database."""
    assert orjson.loads(REPLIES.reply(None, None, WHOLE, TIMING))["prediction_id"] is None


def test_a_reply_has_an_id_only_if_the_request_had_one() -> None:
    """v1 clients see no id they did not send."""
    assert b'"id"' not in REPLIES.reply(None, STORED, WHOLE, TIMING)
    assert b'"id"' not in replies.error_reply(InvalidRequest("no"), None)


def test_the_timestamp_is_utc_whatever_zone_it_was_taken_in() -> None:
    """Existing clients parse a form without an offset, so it must always mean the same."""
    moment = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    assert replies.naive_utc(moment) == "2025-12-31T23:00:00.000000"


def test_an_overloaded_reply_says_when_to_try_again() -> None:
    """retry_after_ms is in the reply where the error has one."""
    reply = orjson.loads(replies.error_reply(Overloaded("full", retry_after_ms=12), 5))
    assert reply == {
        "type": "error",
        "status": "error",
        "code": "overloaded",
        "message": "full",
        "id": 5,
        "retry_after_ms": 12,
    }


def test_the_welcome_names_the_commands_of_v1() -> None:
    """Clients read type, message, version and the four commands."""
    message = orjson.loads(replies.welcome("1.2.3"))
    assert message["type"] == "welcome"
    assert message["version"] == "1.2.3"
    assert isinstance(message["message"], str)
    assert {"predict", "emotions", "model_info", "health"} <= set(message["commands"])


def lookup(command: str, fields: Mapping[str, object]) -> object:
    """What a request for what is stored, with these fields, is read as."""
    return parse_frame(orjson.dumps({"command": command, "id": 1, **fields}).decode())


def test_a_field_that_is_null_is_one_left_out() -> None:
    """As clients send what they have no value for: the latest fifty, or an hour of all."""
    for named in (False, True):
        fields = ("limit", "cursor", "window_s", "buckets", "scope") if named else ()
        assert lookup("history", dict.fromkeys(fields)) == History(1, 50, None)
        assert lookup("stats", dict.fromkeys(fields)) == Stats(1, 3600.0, 0, "all")


def test_the_least_and_the_most_that_may_be_asked_for() -> None:
    """What the error names as the bounds is still allowed."""
    assert [lookup("history", {"limit": limit}) for limit in (1, 1000)] == [
        History(1, 1),
        History(1, 1000),
    ]
    for fields in ({"window_s": 0.001}, {"window_s": 316224000}, {"window_s": 0.5, "buckets": 500}):
        assert lookup("stats", fields) == Stats(1, **fields)
    for faces in (1, 64):
        assert Options().changed({"max_faces": faces}).max_faces == faces
