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
    """Ids count from 1 in label order, which for the seven emotions gives the ids of the v1 contract.

    A label without a description (another model's) is described by its name.
    """
    texts = DESCRIPTIONS[language]
    return [
        {"id": number, "name": label, "description": texts.get(label, label)}
        for number, label in enumerate(labels, start=1)
    ]
