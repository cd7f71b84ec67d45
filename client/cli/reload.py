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
    """Reload the service that was started in this folder, wait, and say how it went.

    VisionAI's own clients lose nothing meanwhile but frames of a camera. Others see the close 1001 and connect again.

    Exit code 4 where it goes on with what it had, 3 where no service is found or .env cannot be read.

    Exit code 6 where it has reloaded, and the output cannot be written.

    What is read anew is the service's .env: that of its own folder.

    Example: visionai reload
    """
    require_service()
    environment = os.environ | ({} if socket is None else {"CONTROL_SOCKET": str(socket)})
    code = subprocess.call([sys.executable, "-m", "service", "--reload"], env=environment)
    raise typer.Exit(_EXIT_CODES.get(code, code))
