"""`visionai serve`: start the service that is installed beside the client."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.cli.exit_codes import ExitCode


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option("--host", help="Where to listen (HOST).")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port; 0 takes a free one (PORT).")
    ] = None,
    model: Annotated[Path | None, typer.Option("--model", help="The .onnx file (MODEL_PATH).")] = None,
    database: Annotated[
        str | None, typer.Option("--database", help="SQLAlchemy URL (DATABASE_URL).", metavar="URL")
    ] = None,
) -> None:
    """Start a server, as `python -m service` does.

    Other settings come from the environment and .env; arguments after -- go to the service.

    Example: visionai serve --port 9000
    """
    require_service()
    settings = {"HOST": host, "PORT": port, "MODEL_PATH": model, "DATABASE_URL": database}
    environment = os.environ | {name: str(value) for name, value in settings.items() if value is not None}
    command = [sys.executable, "-m", "service", *context.args]
    if sys.platform == "win32":
        # exec there starts a new process and ends this one, and the shell takes the prompt back.
        raise typer.Exit(subprocess.call(command, env=environment))
    os.execve(sys.executable, command, environment)


def require_service() -> None:
    """End the command where only the client is installed."""
    if importlib.util.find_spec("service") is None:
        print("visionai: the service is not installed here, only its client", file=sys.stderr)
        raise typer.Exit(ExitCode.USAGE)
