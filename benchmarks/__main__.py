"""`python -m benchmarks`: `commands`, where what they need is installed."""

from __future__ import annotations

import sys

_OURS = ("benchmarks", "client", "service")
_EXIT_NO_SERVER = 3  # as `options` has it, which may not be importable


def main() -> None:
    """Run the command line; where something is not installed, one line says how to install it."""
    try:
        from benchmarks.commands import main as run

        run()
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
