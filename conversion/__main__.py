"""`python -m conversion`: `cli`, where what it needs is installed."""

import sys


def main() -> int:
    """Run the command line; where a package is not installed, one line says which environment has it."""
    try:
        from conversion.cli import main as run
    except ModuleNotFoundError as error:
        package = (error.name or "conversion").partition(".")[0]
        if package == "conversion":
            raise
        print(
            f"error: {package} is not installed for {sys.executable}: run this in .venv-build, which `make convert`"
            " makes (.venv-build/bin/python -m conversion ...)",
            file=sys.stderr,
        )
        return 1
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
