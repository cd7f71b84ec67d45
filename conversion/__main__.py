"""`python -m conversion`: `cli`, where what it needs is installed."""

import signal
import sys


def main() -> int:
    """Run the command line; where a package is not installed, one line says which environment has it."""
    try:
        # Ctrl-C waits: a library in C that is interrupted while it loads says that it cannot be imported.
        if sys.platform != "win32":
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        from conversion.cli import main as run

        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130
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
