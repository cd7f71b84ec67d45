"""Tables without lines."""

from __future__ import annotations

import cProfile
import io

from rich.console import Console

from client.cli.columns import Columns


def drawn(table: Columns, width: int) -> list[str]:
    """The lines of a table on a terminal of so many columns."""
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue().splitlines()


def test_columns_are_as_wide_as_their_widest_cell_of_any_alphabet() -> None:
    """Letters of two cells count as two; what looks like rich's markup or emoji codes is text."""
    table = Columns("Image", "Share", "Face", right=("Share",))
    table.add_row("写真.jpg", "9 %", "one")
    table.add_row("[red]:x:[/red]", "100 %", "")
    assert drawn(table, 40) == [
        "Image           Share  Face",
        "写真.jpg          9 %  one",
        "[red]:x:[/red]  100 %",
    ]


def test_the_widest_columns_are_folded_where_not_all_fit() -> None:
    """Each keeps its column, and so do the cells beside it; one more of the terminal, and nothing is folded."""
    table = Columns("Image", "Emotion", "Face", right=("Face",))
    table.add_row("abcdefghijkl.jpg", "it is no image", "7")
    assert drawn(table, 40) == [
        "Image             Emotion         Face",
        "abcdefghijkl.jpg  it is no image     7",
    ]
    assert drawn(table, 38)[1:] == ["abcdefghijkl.jpg  it is no image     7"]
    assert drawn(table, 30) == [
        "Image        Emotion      Face",
        "abcdefghijk  it is no        7",
        "l.jpg        image",
    ]
    assert drawn(table, 7)[0] == "I  E  F"


def test_a_line_break_stays_in_its_column() -> None:
    """The name of a file may hold one."""
    table = Columns("Face", "Image")
    table.add_row("7", "a\nb")
    assert drawn(table, 40) == ["Face  Image", "7     a", "      b"]


def test_a_row_that_fits_costs_little() -> None:
    """A large folder has tens of thousands of rows: each takes some tens of calls, and not the hundreds of rich's."""
    table = Columns("Image", "Emotion")
    for _ in range(1000):
        table.add_row("a.jpg", "happy")
    profile = cProfile.Profile()
    profile.runcall(drawn, table, 40)
    assert sum(entry.callcount for entry in profile.getstats()) < 100_000
