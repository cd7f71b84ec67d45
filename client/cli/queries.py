"""Commands that ask the server about itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import orjson
import typer
from rich.console import Console
from rich.table import Table

from client.async_client import AsyncClient
from client.cli import options
from client.cli.exit_codes import ExitCode
from client.cli.output import pretty, without

T = TypeVar("T")


def emotions(
    as_json: options.Json = False,
    url: options.Url = options.URL,
    token: options.Token = None,
    timeout: options.Timeout = options.TIMEOUT,
) -> None:
    """List the emotions that the server recognises.

    Example: visionai emotions --json
    """
    found = ask(options.client_for(url, token, timeout), AsyncClient.emotions)
    if as_json:
        print(pretty([asdict(entry) for entry in found]))
        return
    table = plain_table("Id", "Emotion", "Description")
    for entry in found:
        table.add_row(str(entry.id), entry.name, entry.description)
    Console(markup=False).print(table)


def model_info(
    as_json: options.Json = False,
    url: options.Url = options.URL,
    token: options.Token = None,
    timeout: options.Timeout = options.TIMEOUT,
) -> None:
    """Describe the model that the server runs.

    Example: visionai model-info
    """
    info = ask(options.client_for(url, token, timeout), AsyncClient.model_info)
    show(info.raw["info"], as_json)


def health(
    as_json: options.Json = False,
    url: options.Url = options.URL,
    token: options.Token = None,
    timeout: options.Timeout = options.TIMEOUT,
) -> None:
    """Show whether the server is healthy; exit code 4 if it is not.

    Example: visionai health --url ws://127.0.0.1:8000/ws
    """
    found = ask(options.client_for(url, token, timeout), AsyncClient.health)
    show(without(found.raw, "id", "type"), as_json)
    if found.status != "healthy":
        raise typer.Exit(ExitCode.SERVER_ERROR)


def ask(client: AsyncClient, question: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Connect, ask one thing, and close."""

    async def run() -> T:
        async with client:
            return await question(client)

    return asyncio.run(run())


def plain_table(*columns: str) -> Table:
    """A table without lines. For a console without markup: what the server names may have brackets."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show(document: Mapping[str, Any], as_json: bool) -> None:
    """Print fields and their values, one a line."""
    if as_json:
        print(pretty(document))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in document.items():
        table.add_row(key, value if isinstance(value, str) else orjson.dumps(value).decode())
    Console(markup=False).print(table)
