"""`visionai reload`: let the service on this machine take up its model, settings and certificates anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.cli.exit_codes import ExitCode
from client.cli.serve import require_service

# The service's own command tells these apart.
_EXIT_CODES = {
    0: ExitCode.OK,
    1: ExitCode.SERVER_ERROR,
    2: ExitCode.CANNOT_CONNECT,
    3: ExitCode.OUTPUT_FAILED,
}


def reload(
    socket: Annotated[
        Path | None,
        typer.Option("--control-socket", help="The service's Unix socket (CONTROL_SOCKET).", metavar="PATH"),
    ] = None,
) -> None:
    """Reload the service that was started in this folder, wait, and print the result.

    VisionAI's own clients lose only frames of a camera. Other clients see the close 1001 and have to reconnect.

    Exit code 4 if the reload failed and the service goes on as before, 3 if no service is found or .env cannot be read.

    Exit code 6 if it has reloaded, but the output cannot be written.

    The service reads the .env of its own folder again.

    Example: visionai reload
    """
    require_service()
    environment = os.environ | ({} if socket is None else {"CONTROL_SOCKET": str(socket)})
    code = subprocess.call([sys.executable, "-m", "service", "--reload"], env=environment)
    raise typer.Exit(_EXIT_CODES.get(code, code))
