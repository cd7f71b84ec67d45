"""`python -m models`: fetch, convert, train, label, export, evaluate and compare the models that VisionAI serves.

Each command's module is imported when the command runs and not before: `convert` answers "nothing to do"
without TensorFlow, and `fetch` works in an environment that has neither TensorFlow nor ONNX.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
except ModuleNotFoundError:
    # A Python that has none of our packages, such as the system's.
    print(
        f"error: typer is not installed for {sys.executable}: run this in .venv-build, which `make convert` makes"
        " (.venv-build/bin/python -m models ...)",
        file=sys.stderr,
    )
    sys.exit(1)
except KeyboardInterrupt:
    sys.exit(130)  # as later, when typer hears of it

app = typer.Typer(
    name="models",
    help="Fetch, convert, train and evaluate the models that VisionAI serves.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# A forwarded command has its options in its own module: everything after its name is handed over, --help too.
_FORWARDED: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}


def _forward(command: Callable[..., object], context: typer.Context) -> None:
    """Run `command`, a function with typer annotations, on the arguments left in `context`."""
    forwarded = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    forwarded.command()(command)
    forwarded(args=context.args, prog_name=f"python -m models {context.info_name}")


@app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Sources to fetch; all of them by default.")
    ] = None,
) -> None:
    """Download pinned third-party model files and check their hashes.

    Example: python -m models fetch fer
    """
    from models.fetch import fetch_command

    raise typer.Exit(fetch_command(names or []))


@app.command()
def convert(
    names: Annotated[
        list[str] | None, typer.Argument(help="Sources to convert; the served models by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Convert even when nothing changed.")] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Write a report with plots; implies --force."),
    ] = None,
) -> None:
    """Convert the served models to ONNX under models/build/. Does nothing when nothing changed.

    Example: python -m models convert
    """
    from models.convert import convert_command

    raise typer.Exit(convert_command(names or [], force=force, report=report))


@app.command(**_FORWARDED)
def train(context: typer.Context) -> None:
    """Train the emotion model. Options: python -m models train --help."""
    from models.train import train_command

    _forward(train_command, context)


@app.command(**_FORWARDED)
def label(context: typer.Context) -> None:
    """Ask a teacher about the training faces. Options: python -m models label --help."""
    from models.label import label_command

    _forward(label_command, context)


@app.command(**_FORWARDED)
def export(context: typer.Context) -> None:
    """Calibrate a trained network and save it as the one that ships. Options: python -m models export --help."""
    from models.export import export_command

    _forward(export_command, context)


@app.command(**_FORWARDED)
def evaluate(context: typer.Context) -> None:
    """Evaluate a model on labelled faces. Options: python -m models evaluate --help."""
    from models.evaluate import evaluate_command

    _forward(evaluate_command, context)


@app.command(**_FORWARDED)
def pareto(context: typer.Context) -> None:
    """Score and time several models in one run. Options: python -m models pareto --help."""
    from models.pareto import pareto_command

    _forward(pareto_command, context)


def main() -> None:
    """Run the command line; where a tool is missing, one line says which environment has it."""
    try:
        app(prog_name="python -m models")
    except KeyboardInterrupt:
        sys.exit(130)  # before there is a command that hears of it
    except ModuleNotFoundError as error:
        from conversion.cli import missing_build_tool

        tool = missing_build_tool(error)
        if tool is None:
            raise
        print(
            f"error: this needs {tool}: run it in .venv-build, which `make convert` makes"
            " (.venv-build/bin/python -m models ...)",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
