"""The command line `visionai`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `commands`, which take a moment to import: Ctrl-C meanwhile is what it is later."""
    try:
        from client.cli.commands import run
    except KeyboardInterrupt:
        sys.exit(130)
    run()
