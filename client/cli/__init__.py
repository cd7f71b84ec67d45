"""The command line `visionai`."""

from __future__ import annotations

import sys

import typer

from client.cli.exit_codes import HELP, ExitCode, exit_code_of
from client.cli.predict import predict
from client.cli.queries import emotions, health, model_info
from client.cli.records import history, stats
from client.cli.reload import reload
from client.cli.serve import serve
from client.cli.stdout import OutputFailed, checked_output
from client.cli.top import top
from client.cli.watch import watch
from client.errors import Unauthorized, VisionAIError

app = typer.Typer(
    name="visionai",
    help="Emotions in faces, from a VisionAI server.",
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


def main() -> None:
    """Run the command line; ends with one of the exit codes of `client.cli.exit_codes`."""
    try:
        with checked_output():
            app()
    except VisionAIError as error:
        remedy = " (--token or VISIONAI_TOKEN)" if isinstance(error, Unauthorized) else ""
        print(f"visionai: {error.message}{remedy}", file=sys.stderr)
        sys.exit(exit_code_of(error))
    except OutputFailed as error:
        if error.reason:
            print(f"visionai: the output cannot be written: {error.reason}", file=sys.stderr)
        sys.exit(ExitCode.OUTPUT_FAILED)
