"""What the commands share: options, exit codes, and how results are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from benchmarks.report import make_folder, to_json
from benchmarks.tables import Grid
from benchmarks.target import check_url
from benchmarks.workload import SIZES
from client.cli.options import finite
from service.settings import Detect

# Exit codes: 1 errors, wrong answers or none at all, 2 usage, 3 a server cannot be reached or started, 4 an objective
# is missed.
EXIT_WRONG, EXIT_USAGE, EXIT_NO_SERVER, EXIT_MISSED = 1, 2, 3, 4

# Wide enough for the load table also where output goes to a file.
console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 230)
errors = Console(stderr=True, markup=False, highlight=False)
ALL_SIZES = ",".join(SIZES)

SizesOption = Annotated[str, typer.Option("--size", help=f"Images, comma-separated: {', '.join(SIZES)}.")]
BinaryOption = Annotated[bool, typer.Option("--binary", help="Binary frames instead of base64 in JSON.")]
ClientsOption = Annotated[str, typer.Option("--clients", help="Numbers of connections, comma-separated.")]
ModelOption = Annotated[Path, typer.Option(help="The ONNX file.")]
DetectOption = Annotated[
    Detect, typer.Option(help="never: each image is a face; auto: faces are looked for.")
]
RepeatsOption = Annotated[int, typer.Option(min=1, help="Repeats; tables show the median and the range.")]
SecondsOption = Annotated[
    float, typer.Option(min=0.2, help="Measured seconds of each, after a warm-up.", callback=finite)
]
PatienceOption = Annotated[
    float,
    typer.Option(
        min=0,
        help="Seconds to wait before each measurement until nothing else runs on the machine.",
        callback=finite,
    ),
]
PollingOption = Annotated[
    bool,
    typer.Option(
        "--polling",
        help="The clients never sleep: they take a core, and their waking is no part of a latency.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]


def _known_size(text: str) -> str:
    if text not in SIZES:
        raise typer.BadParameter(f"one of {', '.join(SIZES)}")
    return text


SizeOption = Annotated[str, typer.Option("--size", help=f"One of {', '.join(SIZES)}.", callback=_known_size)]


def _parse_url(url: str | None) -> str | None:
    try:
        if url is not None:
            check_url(url)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None
    return url


UrlOption = Annotated[
    str | None,
    typer.Option(help="A running server, ws://HOST:PORT; otherwise one is started.", callback=_parse_url),
]


def parse_sizes(text: str) -> list[str]:
    """Return the image sizes that an option names. Raises typer.BadParameter."""
    sizes = text.split(",")
    if not set(sizes) <= set(SIZES):
        raise typer.BadParameter(f"of {', '.join(SIZES)}", param_hint="--size")
    return sizes


def parse_numbers(text: str, option: str) -> list[int]:
    """Return the whole numbers from 1 that `option` gives, by commas. Raises typer.BadParameter."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise typer.BadParameter("whole numbers from 1, by commas", param_hint=option)
    return numbers


def require_folder(folder: Path) -> None:
    """Make the folder where results go. Raises typer.Exit, after one line on standard error, where that fails."""
    with writing(folder):
        make_folder(folder)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Write results into a folder within. Raises typer.Exit, after one line on standard error, where that fails."""
    try:
        yield
    except OSError as exc:
        print(f"benchmarks: cannot write results into {folder}: {exc.strerror}", file=sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None


def show(as_json: bool, results: dict[str, Any], *grids: Grid) -> None:
    """Print results as JSON, or as tables."""
    if as_json:
        print(to_json(results).decode())
        return
    for grid in grids:
        print_grid(grid)


def print_grid(grid: Grid) -> None:
    """Print a table; with its rows as columns where the terminal is too narrow for its words, and that takes less."""
    table, turned = grid.as_rich(), grid.turned().as_rich()
    if _narrowest(table) > console.width and _narrowest(turned) < _narrowest(table):
        table = turned
    console.print(table)


def _narrowest(table: Table) -> int:
    """Characters that a table takes where its cells go on in the next line after any word."""
    return Measurement.get(console, console.options.update(width=sys.maxsize), table).minimum
