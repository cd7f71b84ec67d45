"""The command line `visionai`."""

from __future__ import annotations

import sys

import typer

from client.cli.exit_codes import HELP, exit_code_of
from client.cli.predict import predict
from client.cli.queries import emotions, health, model_info
from client.cli.records import history, stats
from client.cli.reload import reload
from client.cli.serve import serve
from client.cli.top import top
from client.cli.watch import watch
from client.errors import VisionAIError

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
        app()
    except VisionAIError as error:
        print(f"visionai: {error.message}", file=sys.stderr)
        sys.exit(exit_code_of(error))
