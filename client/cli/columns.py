"""A table without lines, for any number of rows."""

from __future__ import annotations

from collections.abc import Collection
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.text import Text

_BETWEEN = "  "


class Columns:
    """Rows of text below `headings`. A column is as wide as its widest cell; the widest are folded where not all fit.

    rich's own table lays out each cell as a document: for tens of thousands of rows that takes long.
    """

    def __init__(self, *headings: str, right: Collection[str] = ()) -> None:
        self._right = [heading in right for heading in headings]
        self._rows = [(headings, "bold")]

    def add_row(self, *cells: str, style: str = "none") -> None:
        """Add a row, of as many cells as there are headings."""
        self._rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it."""
        widths = [
            max(map(cell_len, column)) for column in zip(*(cells for cells, _ in self._rows), strict=True)
        ]
        room = max(options.max_width - len(_BETWEEN) * (len(widths) - 1), len(widths))
        while sum(widths) > room:
            widths[widths.index(max(widths))] -= 1
        for cells, style in self._rows:
            folded = [_lines(console, cell, width) for cell, width in zip(cells, widths, strict=True)]
            for line in zip_longest(*folded, fillvalue=""):
                padded = [
                    " " * (width - cell_len(part)) + part if right else set_cell_size(part, width)
                    for part, width, right in zip(line, widths, self._right, strict=True)
                ]
                yield Segment(_BETWEEN.join(padded).rstrip(), console.get_style(style))
                yield Segment.line()


def _lines(console: Console, cell: str, width: int) -> list[str]:
    if cell_len(cell) <= width and cell.isprintable():
        return [cell]
    return [line.plain for line in Text(cell).wrap(console, width, overflow="fold")]
