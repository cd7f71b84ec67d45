"""The command line `visionai`."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run `commands`, which take a moment to import and to begin: Ctrl-C meanwhile is what it is later.

    Before that Python has imported `client`, and of Ctrl-C in that moment it shows a traceback.
    """
    try:
        # It waits: a library in C that is interrupted while it loads says that it cannot be imported.
        if sys.platform != "win32":
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        from client.cli.commands import run

        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        run()
    except KeyboardInterrupt:
        sys.exit(130)
