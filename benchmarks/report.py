"""The report: one HTML file that needs nothing else, and the same figures as JSON."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import orjson

from benchmarks.tables import Grid

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1a202c }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e2e8f0 }
th:first-child, td:first-child { text-align: left }
p.note { color: #4a5568; font-size: .85rem } svg { max-width: 100%; height: auto }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem } dt { color: #4a5568 } dd { margin: 0 }
"""

Part = Grid | str


def make_folder(folder: Path) -> None:
    """Make a folder for results, so that it is known before the measurements whether they can be kept.

    Raises:
        OSError: it cannot be made, or not written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_report(
    folder: Path, machine: dict[str, Any], settings: dict[str, Any], parts: Sequence[Part]
) -> Path:
    """Write ``report.html``: grids as tables, strings as they are (SVG). Returns its path."""
    body = ["<h1>VisionAI: measurements</h1>", _facts({**machine, **settings})]
    body += [part if isinstance(part, str) else _table(part) for part in parts]
    path = folder / "report.html"
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>VisionAI: measurements</title>'
        f"<style>{_STYLE}</style><body>{''.join(body)}</body></html>\n",
        encoding="utf-8",
    )
    return path


def write_results(folder: Path, results: dict[str, Any]) -> Path:
    """Write ``results.json``, as `to_json` has it. Returns its path."""
    path = folder / "results.json"
    path.write_bytes(to_json(results, orjson.OPT_INDENT_2) + b"\n")
    return path


def to_json(results: object, options: int = 0) -> bytes:
    """Results as JSON: of each dataclass its fields and its properties, so that it holds what the tables tell."""
    return orjson.dumps(results, default=_plain, option=options | orjson.OPT_PASSTHROUGH_DATACLASS)


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        told = [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        return {name: getattr(value, name) for name in (*(each.name for each in fields(value)), *told)}
    raise TypeError(f"{type(value).__name__} has no place in the results")


def _facts(facts: dict[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        rows.append(f"<dt>{html.escape(name.replace('_', ' '))}</dt><dd>{html.escape(shown)}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _table(grid: Grid) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in grid.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in grid.rows
    )
    note = f'<p class="note">{html.escape(grid.note)}</p>' if grid.note else ""
    return f"<h2>{html.escape(grid.title)}</h2><table><tr>{head}</tr>{rows}</table>{note}"
