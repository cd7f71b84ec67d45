"""The emotions as the wire contract names them: fixed ids, descriptions in two languages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

Language = Literal["es", "en"]

DESCRIPTIONS: dict[Language, dict[str, str]] = {
    "es": {
        "angry": "Enojo o ira",
        "disgust": "Disgusto o asco",
        "fear": "Miedo o temor",
        "happy": "Felicidad o alegría",
        "neutral": "Expresión neutral",
        "sad": "Tristeza",
        "surprise": "Sorpresa",
    },
    "en": {
        "angry": "Anger",
        "disgust": "Disgust",
        "fear": "Fear",
        "happy": "Happiness or joy",
        "neutral": "Neutral expression",
        "sad": "Sadness",
        "surprise": "Surprise",
    },
}


class Emotion(TypedDict):
    """One entry of the reply to ``emotions``."""

    id: int
    name: str
    description: str


def describe(labels: Sequence[str], language: Language) -> list[Emotion]:
    """In label order, with the ids of the v1 contract for its seven emotions; another model's others are numbered on.

    A label without a description (another model's) is described by its name.
    """
    texts = DESCRIPTIONS[language]
    ids = {label: number for number, label in enumerate(texts, start=1)}
    return [
        {"id": ids.setdefault(label, len(ids) + 1), "name": label, "description": texts.get(label, label)}
        for label in labels
    ]
