"""docs/asyncapi.yaml, held against real messages."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import orjson
import yaml
from jsonschema import Draft202012Validator, FormatChecker

from service.images import ImageFile

DESCRIPTION = Path(__file__).parents[1] / "docs/asyncapi.yaml"

# What `type` a reply has, or which `command` a request, and the schema that it must then fit.
REPLIES = {
    "welcome": "Welcome",
    "prediction": "Prediction",
    "configuration": "Configuration",
    "history": "HistoryPage",
    "stats": "Figures",
    "emotions": "EmotionList",
    "model_info": "ModelDescription",
    "models": "ModelList",
    "health": "HealthReport",
    "pong": "Pong",
    "error": "Error",
}
REQUESTS = {
    "predict": "Predict",
    "configure": "Configure",
    "history": "History",
    "stats": "Stats",
    "emotions": "EmotionsQuery",
    "model_info": "ModelInfoQuery",
    "models": "ModelsQuery",
    "health": "HealthQuery",
    "ping": "PingQuery",
}


@cache
def description() -> dict[str, Any]:
    """The whole document."""
    document: dict[str, Any] = yaml.safe_load(DESCRIPTION.read_text())
    return document


@cache
def validator(schema: str) -> Draft202012Validator:
    """Checks messages against one of the document's schemas."""
    document = {"$ref": f"#/components/schemas/{schema}", "components": description()["components"]}
    return Draft202012Validator(document, format_checker=FormatChecker())


def check_reply(reply: bytes | str) -> None:
    """Raise unless the service may send this."""
    message = orjson.loads(reply)
    validator(REPLIES[message["type"]]).validate(message)


def check_request(frame: ImageFile | str) -> None:
    """Raise unless a client may send this; of a binary frame, its header, which has the image behind it."""
    if isinstance(frame, str):
        message = orjson.loads(frame)
    elif frame[:1] == b"{":
        message = {"image": "", **orjson.loads(bytes(frame).partition(b"\n")[0])}
    else:
        return
    validator(REQUESTS[message.get("command") or "predict"]).validate(message)
