"""`python -m benchmarks`: `commands`, where what they need is installed."""

from __future__ import annotations

import signal
import sys

from service.processes.signals import held_back

_OURS = ("benchmarks", "client", "service")
_EXIT_NO_SERVER = 3  # as `options` has it, which may not be importable


def main() -> None:
    """Run the command line; where something is not installed, one line says how to install it."""
    try:
        # A library in C that is interrupted while it loads says that it cannot be imported.
        with held_back(signal.SIGINT):
            from benchmarks.commands import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell has it
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] in _OURS:
            raise
        # Python itself may be another than that of .venv; and what `make run` installs there has not these extras.
        print(
            f"benchmarks: {exc.name} is missing: `make bench` installs it, or:"
            " pip install -c constraints.txt -e '.[test,bench]'; then: .venv/bin/python -m benchmarks",
            file=sys.stderr,
        )
        sys.exit(_EXIT_NO_SERVER)


if __name__ == "__main__":
    main()
