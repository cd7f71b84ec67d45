"""The commands of `visionai`, and its exit codes."""

from __future__ import annotations

import signal
import sys
from types import FrameType

import typer

from client.cli.exit_codes import HELP, ExitCode, exit_code_of
from client.cli.predict import predict
from client.cli.queries import emotions, health, model_info
from client.cli.records import history, stats
from client.cli.reload import reload
from client.cli.serve import serve
from client.cli.stderr import messages
from client.cli.stdout import OutputFailed, checked_output
from client.cli.top import top
from client.cli.watch import watch
from client.errors import Unauthorized, VisionAIError

app = typer.Typer(
    name="visionai",
    help="Recognise emotions in faces with a VisionAI server.",
    epilog=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is for a bug report: whole and plain
)
app.command()(predict)
app.command()(emotions)
app.command()(model_info)
app.command()(health)
app.command()(stats)
app.command()(history)
app.command()(watch)
app.command()(top)
app.command(context_settings={"allow_extra_args": True})(serve)
app.command()(reload)


def run() -> None:
    """Run the command line; ends with one of the exit codes of `client.cli.exit_codes`.

    What SIGTERM and SIGHUP end leaves the terminal as Ctrl-C does, and the code is a shell's for that signal.
    """
    sys.stderr = messages(sys.stderr)
    ended: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        ended.append(number)
        if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN):
            sys.exit(128 + number)
        # An event loop runs, which cancels on Ctrl-C what it runs.
        signal.raise_signal(signal.SIGINT)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, end)
    try:
        with checked_output():
            app()
    except VisionAIError as error:
        remedy = " (--token or VISIONAI_TOKEN)" if isinstance(error, Unauthorized) else ""
        print(f"visionai: {error.message}{remedy}", file=sys.stderr)
        sys.exit(exit_code_of(error))
    except OutputFailed as error:
        if ended:  # it was the last of a screen, on a terminal that is gone
            sys.exit(128 + ended[0])
        if error.reason:
            print(f"visionai: the output cannot be written: {error.reason}", file=sys.stderr)
        sys.exit(ExitCode.OUTPUT_FAILED)
    except SystemExit:
        if ended:
            sys.exit(128 + ended[0])
        raise
