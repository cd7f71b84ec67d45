"""Start the service: `python -m service`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from service import __version__
from service.errors import EXIT_CANNOT_START, StartupError, telling_missing_packages
from service.processes import hangup
from service.processes.signals import hear, held_back

if TYPE_CHECKING:
    from service.settings import Settings

_DESCRIPTION = """\
Serve facial emotion recognition over WebSocket.

Settings come from the environment and from a .env file in the current folder:
HOST, PORT, DATABASE_URL, MODEL_PATH and others (docs/operations.md lists them).

examples:
  python -m service
  PORT=9000 DATABASE_URL=postgresql://me:secret@db/visionai python -m service
  python -m service --migrate-only
  python -m service --reload
  PROVIDER=auto python -m service tune
  API_KEYS_FILE=keys.txt python -m service create-key anna
"""

_TUNE = """\
Measure the model alone, with every layout of sessions, threads and batches on this
machine, show the table, and keep the fastest layout for the next starts, unless the
machine was busy.

examples:
  python -m service tune
  PROVIDER=auto python -m service tune
"""

_CREATE_KEY = """\
Create an API key, add it to API_KEYS_FILE and print it. It is not shown again.

examples:
  API_KEYS_FILE=keys.txt python -m service create-key anna
  API_KEYS_FILE=keys.txt python -m service create-key anna --days 90
"""

# Exit codes: 0 a clean shutdown, 1 a fault while serving, 2 it could not start (`errors.EXIT_CANNOT_START`).
# And of --reload: 0 done, 1 the old model is still served, 2 no service was found, 3 done, and it cannot be printed.
_EXIT_NOT_RELOADED = 1
_EXIT_RELOADED_UNTOLD = 3


def main() -> int:
    """Parse the command line, serve, and return the exit code."""
    try:
        return _run()
    except KeyboardInterrupt:
        return 130  # Ctrl-C before the service listened for signals: 128 + SIGINT


def _run() -> int:
    _open_standard_streams()
    parser = argparse.ArgumentParser(
        prog="python -m service",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on; overrides HOST")
    parser.add_argument("--port", type=int, help="port to listen on; overrides PORT")
    parser.add_argument("--migrate-only", action="store_true", help="bring the database up to date, and exit")
    parser.add_argument(
        "--reload",
        action="store_true",
        help="reload model and settings of the service that was started in this folder, wait, and print the result",
    )
    parser.add_argument("--version", action="version", version=f"VisionAI {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser(
        "tune",
        help="measure which sessions, threads and batches are fastest here",
        description=_TUNE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    create_key = commands.add_parser(
        "create-key",
        help="create an API key, add it to API_KEYS_FILE and print it",
        description=_CREATE_KEY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    create_key.add_argument("user", help="the user's name, which is stored with each prediction")
    create_key.add_argument(
        "--days", type=int, help="days until it expires; by default it is valid until its line is deleted"
    )
    arguments = parser.parse_args()
    try:
        with telling_missing_packages():
            return _start(arguments)
    except StartupError as exc:
        print(f"VisionAI cannot start: {exc}", file=sys.stderr)
        return EXIT_CANNOT_START


def _open_standard_streams() -> None:
    """Open the null device where stdin, stdout or stderr is closed.

    Else the next file or socket would get that number, and with it what libraries print.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(null, True)  # as standard streams are
            setattr(sys, name, os.fdopen(null, mode))


def _start(arguments: argparse.Namespace) -> int:
    # Imported here so that --help and --version answer at once. numpy would start a thread per CPU for linear algebra
    # that the service does not do; a process with threads cannot fork safely.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if arguments.reload:
        return _reload()
    serves = arguments.command is None and not arguments.migrate_only
    if serves:
        hangup.hold_back()  # until the supervisor listens; before what takes time, which importing does
    # Process 1 of a container gets no signal that it has no handler for. Later the supervisor listens.
    signal.signal(signal.SIGTERM, _stop_starting if serves else _stop_undone)
    hear()
    # A library in C that is interrupted while it loads says that it cannot be imported.
    with held_back(signal.SIGINT, signal.SIGTERM):
        from service.settings import load_settings

    if arguments.port is not None and not 0 <= arguments.port <= 65535:
        raise StartupError(f"--port {arguments.port}: a port is a number from 0 to 65535")
    for name, value in (("HOST", arguments.host), ("PORT", arguments.port)):
        if value is not None:
            os.environ[name] = str(value)  # and not only in what is read now: a reload reads it again
    settings = load_settings()
    with held_back(signal.SIGINT, signal.SIGTERM):
        from service.processes.apart import run_apart
        from service.processes.worker import prepare_database
        from service.store import MIGRATION_UNFINISHED
        from service.telemetry.logs import configure_logging

    if arguments.command == "create-key":
        return _create_key(settings, arguments.user, arguments.days)
    configure_logging(settings.log_level, settings.log_format)
    if arguments.migrate_only:
        # Python hears no signal amid a statement, but while it waits for a process. What is not committed is as it was.
        run_apart(partial(prepare_database, settings), unfinished=MIGRATION_UNFINISHED)
        return 0
    if arguments.command == "tune":
        from service.tune import tune

        tune(settings)
        return 0
    return _serve(settings)


def _serve(settings: Settings) -> int:
    from service.canary import check_canary
    from service.engine.calibration import calibrated
    from service.modelfile import resolve_model
    from service.network.listening import make_room
    from service.processes.cpus import check_layout
    from service.processes.supervisor import Supervisor
    from service.processes.worker import check_startable
    from service.security.exposure import warn_if_exposed
    from service.store import bring_up_to_date

    resolve_model(settings.model_path)  # before the port is bound: the commonest mistake is told at once
    warn_if_exposed(settings)
    settings = calibrated(settings)
    check_layout(settings)
    check_canary(settings)
    make_room(settings)
    try:
        supervisor = Supervisor(settings)
    except OSError as exc:
        raise StartupError(
            f"the workers can share no memory: {exc.strerror}; make /dev/shm writable, or where it has not some MB of "
            "room, the folder for temporary files (TMPDIR)"
        ) from None
    # Once the port is ours: that it is taken is told first. And only where workers could start.
    bring_up_to_date(settings.database_url, partial(check_startable, settings))
    return supervisor.run()


def _stop_starting(number: int, frame: object) -> NoReturn:
    """Nothing is served and nothing is stored yet: what was begun, as calibration, ends, and so does this process."""
    sys.exit(0)


def _stop_undone(number: int, frame: object) -> NoReturn:
    """A command that is cut short is no success: the code is a shell's for a signal."""
    sys.exit(128 + number)


def _reload() -> int:
    """Let the service that was started here reload. What is wrong with its settings is for it to say."""
    with held_back(signal.SIGINT, signal.SIGTERM):
        from service.processes.reload import request_reload
        from service.settings import load_control_socket

    try:
        outcome = request_reload(load_control_socket())
    except StartupError as exc:
        print(f"cannot reload: {exc}", file=sys.stderr)
        return EXIT_CANNOT_START
    if outcome.error is not None:
        print(f"not reloaded, model {outcome.version_tag} is still served: {outcome.error}", file=sys.stderr)
        return _EXIT_NOT_RELOADED
    canary = "" if outcome.canary_tag is None else f", canary {outcome.canary_tag}"
    try:
        _print(f"reloaded: model {outcome.version_tag}{canary}")
    except OSError as exc:
        if not isinstance(exc, BrokenPipeError):  # its reader has gone: there is nobody to tell
            print(f"reloaded, but the output cannot be written: {exc.strerror}", file=sys.stderr)
        return _EXIT_RELOADED_UNTOLD
    return 0


def _create_key(settings: Settings, user: str, days: int | None) -> int:
    from service.security import api_keys

    if settings.api_keys_file is None:
        raise StartupError("API_KEYS_FILE is not set: name a file, which is made where there is none")
    key = api_keys.create(settings.api_keys_file, user, days)
    try:
        _print(key)
    except OSError as exc:
        raise StartupError(
            f"the key cannot be printed ({exc.strerror}), and nobody knows it: delete the last line of"
            f" {settings.api_keys_file}, and make another"
        ) from None
    return 0


def _print(line: str) -> None:
    """Raises OSError where it cannot be written."""
    try:
        print(line, flush=True)
    except OSError:
        # What is left in the buffer would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


if __name__ == "__main__":
    sys.exit(main())
