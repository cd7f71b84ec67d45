"""Rows of named values as JSON, NDJSON or CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import orjson

from client.cli.output import Format, pretty


def write_rows(chosen: Format, out: TextIO, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows`. Columns of CSV are those of the first row; what is no text or number is JSON in its cell."""
    if chosen is Format.JSON:
        out.write(pretty(rows) + "\n")
    elif chosen is Format.NDJSON:
        out.writelines(orjson.dumps(row).decode() + "\n" for row in rows)
    elif rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else orjson.dumps(value).decode()
