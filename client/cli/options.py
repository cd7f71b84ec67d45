"""Options that several commands share, and the client that they describe."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from client.async_client import DEFAULT_URL, AsyncClient
from client.cli.output import Format
from client.connection import checked_token


def _checked(token: str | None) -> str | None:
    try:
        return checked_token(token)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def finite(number: float | None) -> float | None:
    """What an option gives, for its callback: `inf` and `nan` are floats, too. Raises typer.BadParameter."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is no finite number")
    return number


Url = Annotated[
    str, typer.Option("--url", envvar="VISIONAI_URL", help="WebSocket address of the server.", metavar="URL")
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="VISIONAI_TOKEN",
        help="Token or API key, if the server requires one.",
        metavar="TOKEN",
        callback=_checked,
    ),
]
Timeout = Annotated[
    float,
    typer.Option("--timeout", min=0.001, help="Seconds for one answer, retries included.", metavar="SECONDS"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the server's reply as JSON.")]
FormatChoice = Annotated[
    Format, typer.Option("--format", "-f", help="Table for people, the others for programs.")
]
FormatJson = Annotated[bool, typer.Option("--json", help="The same as --format json.")]

URL = DEFAULT_URL
TIMEOUT = 30.0


def client_for(url: str, token: str | None, timeout: float) -> AsyncClient:
    """The client that the options describe.

    Raises:
        typer.BadParameter: `url` is not a WebSocket address.
    """
    try:
        return AsyncClient(url, token=token, timeout=timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--url'") from None
