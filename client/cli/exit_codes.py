"""What the exit code of `visionai` says."""

from __future__ import annotations

from enum import IntEnum

from client.errors import ConnectionFailed, Unauthorized, VisionAIError


class ExitCode(IntEnum):
    """Stable: scripts branch on them."""

    OK = 0
    IMAGE_FAILED = 1
    USAGE = 2
    CANNOT_CONNECT = 3
    SERVER_ERROR = 4
    UNAUTHORIZED = 5
    OUTPUT_FAILED = 6
    INTERRUPTED = 130


HELP = "\n\n".join(  # a blank line, or the help page would run them together
    [
        "Exit codes:",
        "0 ok",
        "1 some image failed, the others were answered",
        "2 wrong usage: nothing was sent",
        "3 cannot connect, or the connection was lost for good",
        "4 the server answered with an error, or is not healthy",
        "5 the server requires a token, or refuses this one",
        "6 the output cannot be written, as on a full disk, or its reader has gone",
        "130 interrupted with Ctrl-C; 143, 129 ended by SIGTERM, SIGHUP",
    ]
)


def exit_code_of(error: VisionAIError) -> ExitCode:
    """The exit code for an error that ends the command."""
    match error:
        case ConnectionFailed():
            return ExitCode.CANNOT_CONNECT
        case Unauthorized():
            return ExitCode.UNAUTHORIZED
        case _:
            return ExitCode.SERVER_ERROR
