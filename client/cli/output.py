"""How outcomes are written: a table for people; JSON, CSV and NDJSON for programs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, TextIO

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.errors import VisionAIError
from client.many import Outcome
from client.results import Prediction


class Format(StrEnum):
    """What `--format` takes."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    NDJSON = "ndjson"


class Writer(Protocol):
    """Takes the outcomes as they come; has written all of them once it is closed."""

    def write(self, name: str, outcome: Outcome) -> None:
        """Take one outcome."""

    def close(self) -> None:
        """There are no more."""


def writer_for(chosen: Format, out: TextIO, emotions: Sequence[str]) -> Writer:
    """A writer of `chosen` to `out`; `emotions` are the columns of CSV."""
    match chosen:
        case Format.TABLE:
            return TableWriter(out)
        case Format.JSON:
            return JsonWriter(out)
        case Format.CSV:
            return CsvWriter(out, emotions)
        case Format.NDJSON:
            return NdjsonWriter(out)


def explain(error: VisionAIError | OSError) -> tuple[str, str]:
    """The code and the message of an error; a file that cannot be read has the code ``file``."""
    if isinstance(error, VisionAIError):
        return error.code, error.message
    return "file", error.strerror or str(error)


def without(reply: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """A reply without the fields that say nothing to who reads it, such as its id."""
    return {name: value for name, value in reply.items() if name not in names}


def pretty(document: Any) -> str:
    """JSON for people, too."""
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()


def as_document(name: str, outcome: Outcome) -> dict[str, Any]:
    """The server's reply with the file's name; for an error, its code and message."""
    if outcome.prediction is not None:
        return {"file": name, **without(outcome.prediction.raw, "id")}
    assert outcome.error is not None
    code, message = explain(outcome.error)
    return {"file": name, "type": "error", "status": "error", "code": code, "message": message}


_SPARKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """The values as bars of eight heights; the highest is the largest value."""
    peak = max(values, default=0.0)
    return "".join(_SPARKS[round(value / peak * 7) if peak else 0] for value in values)


def percent(share: float) -> str:
    """A share of 0..1 as people read it."""
    return f"{share * 100:.1f} %"


def counted(count: int, noun: str) -> str:
    """``1 prediction``, ``2 predictions``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class NdjsonWriter:
    """One JSON object a line, as outcomes come in."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def write(self, name: str, outcome: Outcome) -> None:
        """Write one line."""
        self._out.write(orjson.dumps(as_document(name, outcome)).decode() + "\n")
        self._out.flush()

    def close(self) -> None:
        """Nothing is left."""


class JsonWriter:
    """One JSON array, its elements as outcomes come in: those of a large folder would not fit in memory together."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._before = "[\n"

    def write(self, name: str, outcome: Outcome) -> None:
        """Write one element."""
        alone = pretty([as_document(name, outcome)])
        self._out.write(self._before + alone.removeprefix("[\n").removesuffix("\n]"))
        self._before = ",\n"

    def close(self) -> None:
        """End the array, which has one element at least."""
        self._out.write("\n]\n")


class CsvWriter:
    """One row per image, as outcomes come in; a column for the probability of each emotion."""

    COLUMNS = ("file", "emotion_name", "confidence", "faces", "model_version_tag", "processing_time_ms")

    def __init__(self, out: TextIO, emotions: Sequence[str]) -> None:
        self._emotions = emotions
        self._rows = csv.writer(out, lineterminator="\n")
        self._rows.writerow([*self.COLUMNS, *emotions, "error_code", "error"])

    def write(self, name: str, outcome: Outcome) -> None:
        """Write one row."""
        prediction = outcome.prediction
        if prediction is not None:
            self._rows.writerow(
                [
                    name,
                    prediction.emotion_name,
                    prediction.confidence,
                    face_count(prediction),
                    prediction.model_version_tag,
                    f"{prediction.processing_time_ms:g}",
                    *(prediction.probabilities.get(emotion, "") for emotion in self._emotions),
                    "",
                    "",
                ]
            )
        elif outcome.error is not None:
            blank = [""] * (len(self.COLUMNS) - 1 + len(self._emotions))
            self._rows.writerow([name, *blank, *explain(outcome.error)])

    def close(self) -> None:
        """Nothing is left."""


class TableWriter:
    """A table, at the end: a line for each face, or for the image where the server names no faces."""

    def __init__(self, out: TextIO) -> None:
        self._console = Console(file=out, markup=False)
        self._table = Table(box=None, pad_edge=False, header_style="bold")
        self._table.add_column("Image", overflow="fold")
        self._table.add_column("Emotion")
        self._table.add_column("Confidence", justify="right")
        self._table.add_column("Face", justify="right")

    def write(self, name: str, outcome: Outcome) -> None:
        """Keep the lines of one image."""
        prediction = outcome.prediction
        if prediction is None:
            assert outcome.error is not None
            self._table.add_row(Text(name), Text(explain(outcome.error)[1], style="red"), "", "")
        elif not prediction.faces:
            face = "none found" if prediction.face_detected is False else ""
            self._table.add_row(Text(name), prediction.emotion_name, percent(prediction.confidence), face)
        for number, found in enumerate(prediction.faces if prediction else (), start=1):
            box = found.box
            where = f"{box.width:.0f}x{box.height:.0f} at {box.x:.0f},{box.y:.0f}"
            self._table.add_row(
                Text(name if number == 1 else ""), found.emotion_name, percent(found.confidence), where
            )

    def close(self) -> None:
        """Print the table."""
        self._console.print(self._table)


def face_count(prediction: Prediction) -> int | str:
    """How many faces were found; empty where the server does not look for faces."""
    if prediction.faces or prediction.face_detected is not None:
        return len(prediction.faces)
    return ""
