"""docs/asyncapi.yaml: valid, complete, served. That real messages fit it is held by every test beside this one."""

from __future__ import annotations

import urllib.request
from asyncio import to_thread
from collections.abc import Iterator
from typing import Any

import jsonschema
import orjson
import pytest
from jsonschema.validators import validator_for

from service.errors import ERROR_CODES
from service.protocol.requests import COMMANDS, SUBPROTOCOL, Options
from tests.contract import DESCRIPTION, REPLIES, REQUESTS, check_reply, check_request, description, validator
from tests.service.harness import ROOT, TIMEOUT, Running


def test_the_document_is_valid_asyncapi() -> None:
    """By AsyncAPI's own schema of version 3.0.0."""
    schema = orjson.loads((ROOT / "tests/data/asyncapi-3.0.0.json").read_bytes())
    validator_for(schema)(schema).validate(description())


def test_every_message_has_a_sound_schema() -> None:
    """All references lead somewhere, each schema is one, and each message is in an operation."""
    components = description()["components"]
    for name, message in components["messages"].items():
        assert name in description()["channels"]["session"]["messages"]
        if name != "predictImage":
            schema = message["payload"]["$ref"].rpartition("/")[2]
            validator(schema).check_schema(components["schemas"][schema])
            assert schema in {*REPLIES.values(), *REQUESTS.values()}
    used = {
        reference["$ref"].rpartition("/")[2]
        for operation in description()["operations"].values()
        for reference in [*operation["messages"], *operation.get("reply", {}).get("messages", [])]
    }
    assert used == set(components["messages"])


def test_the_document_knows_every_command_code_and_option() -> None:
    """A command, an error code or an option that is added is described."""
    schemas = description()["components"]["schemas"]
    assert set(REQUESTS) == set(COMMANDS)
    assert set(ERROR_CODES) <= set(schemas["Error"]["properties"]["code"]["enum"])
    options = set(Options.__slots__)
    assert set(schemas["Configuration"]["properties"]["configuration"]["properties"]) == options
    assert set(schemas["Configure"]["properties"]) == options | {"command", "id", "token"}
    assert SUBPROTOCOL in description()["channels"]["session"]["description"]


def test_a_reply_with_an_unknown_field_does_not_fit() -> None:
    """So that a field that is added to a reply has to be described."""
    pong = {"type": "pong", "status": "success", "timestamp": "2026-11-22T10:30:45.123456"}
    check_reply(orjson.dumps(pong))
    with pytest.raises(jsonschema.ValidationError, match="novelty"):
        check_reply(orjson.dumps(pong | {"novelty": 1}))


def test_a_text_frame_that_predicts_has_an_image() -> None:
    """As the service insists; a binary frame's header has none, and the image behind it."""
    check_request('{"image": "/9j/"}')
    check_request(b'{"id": 1}\n\xff\xd8')
    with pytest.raises(jsonschema.ValidationError, match="image"):
        check_request('{"command": "predict", "id": 1}')


def test_every_object_in_a_reply_has_all_of_its_fields_described() -> None:
    """So that the same holds inside: none takes further ones."""

    def open_objects(schema: Any, path: str) -> Iterator[str]:
        if isinstance(schema, dict):
            if schema.get("type") == "object" and "additionalProperties" not in schema:
                yield path
            for name, inner in schema.items():
                yield from open_objects(inner, f"{path}.{name}")

    schemas = description()["components"]["schemas"]
    sent = {*REPLIES.values(), "Face", "StoredPrediction"}
    assert [path for name in sorted(sent) for path in open_objects(schemas[name], name)] == []


async def test_the_document_is_served(running: Running) -> None:
    """Byte for byte, at /asyncapi.yaml."""

    def get() -> tuple[str, bytes]:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{running.port}/asyncapi.yaml", timeout=TIMEOUT
        ) as reply:
            return reply.headers["Content-Type"], reply.read()

    content_type, body = await to_thread(get)
    assert content_type.startswith("application/yaml")
    assert body == DESCRIPTION.read_bytes()
