"""`python -m models evaluate`: score a model on labelled faces, by one definition of the figures.

Truth is the FER+ majority among all ten columns. Rows whose majority is not one of the seven emotions, is tied,
or has no votes are left out, and so are images that also occur in the train split.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from conversion.telling import told
from models.dataset import EMOTIONS, DataError, Split, load_split, scored_rows
from models.metrics import (
    ClassFigures,
    accuracy,
    class_figures,
    confusion_matrix,
    expected_calibration_error,
)
from models.networks import ModelError
from models.predictor import load_predictor


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of one model on one split, all shares in 0..1.

    `n` rows have a FER+ truth and are behind every figure but `fer2013_accuracy`, which is over all rows that do
    not occur in train. `confusion` has a row for each true emotion and a column for each predicted one.
    `ms_per_face` is the mean time of one face by itself on one thread.
    """

    n: int
    ferplus_accuracy: float
    fer2013_accuracy: float
    ece: float
    macro_f1: float
    per_class: dict[str, ClassFigures]
    confusion: list[list[int]]
    ms_per_face: float


def evaluate(probabilities: NDArray[np.float32], split: Split, ms_per_face: float) -> Evaluation:
    """Score probabilities float32 [n, 7], one row for each image of `split`, in the order of EMOTIONS.

    Raises DataError when no row of the split can be scored.
    """
    truth, scored = scored_rows(split)
    of_scored = probabilities[scored]
    confusion = confusion_matrix(of_scored, truth[scored])
    figures = class_figures(confusion)
    fresh = ~split.duplicate
    return Evaluation(
        n=int(scored.sum()),
        ferplus_accuracy=accuracy(of_scored, truth[scored]),
        fer2013_accuracy=accuracy(probabilities[fresh], split.labels[fresh]),
        ece=expected_calibration_error(of_scored, truth[scored]),
        macro_f1=float(np.mean([figure.f1 for figure in figures])),
        per_class=dict(zip(EMOTIONS, figures, strict=True)),
        confusion=confusion.tolist(),
        ms_per_face=ms_per_face,
    )


def evaluate_command(
    model: Annotated[Path, typer.Argument(help="A converted .onnx, or modelo_emociones.keras.")],
    data: Annotated[Path, typer.Option(help="An .npz with {split}_x, {split}_y and {split}_votes.")],
    split: Annotated[str, typer.Option(help="Which split of the file.")] = "val",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the confusion matrix into this picture.")] = None,
) -> None:
    """Score a model on labelled faces.

    Example: python -m models evaluate models/build/modelo_emociones.onnx --data fer2013_train_val.npz --json
    """
    if plot is not None:
        check_plot(plot)
    try:
        faces = load_split(data, split)
        predictor = load_predictor(model, timed=True)
        result = evaluate(predictor.probabilities(faces.images), faces, predictor.ms_per_face(faces.images))
    except (DataError, ModelError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    status = told(
        lambda: print(json.dumps(asdict(result), allow_nan=False)) if as_json else _print(result, model),
        "the model is scored",
    )
    # Last: a disk that is full does not cost the figures.
    if plot is not None:
        from models.plots import plot_confusion

        with drawn(plot):
            plot_confusion(np.array(result.confusion), EMOTIONS, plot)
    if status:
        raise typer.Exit(status)


def check_plot(plot: Path) -> None:
    """Refuse a picture that could not be drawn once everything is measured. Raises typer.BadParameter."""
    from models.plots import check_picture

    try:
        check_picture(plot)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--plot") from None


@contextmanager
def drawn(plot: Path) -> Iterator[None]:
    """Draw into `plot` within; where there is no room, one line says so. Raises typer.Exit."""
    try:
        yield
    except OSError as error:
        typer.echo(f"error: {plot}: cannot write: {error.strerror}", err=True)
        raise typer.Exit(1) from error


def _print(result: Evaluation, model: Path) -> None:
    console = Console(markup=False)
    console.print(
        f"{model.name}: FER+ accuracy {result.ferplus_accuracy:.4f} on {result.n} faces, FER2013 labels "
        f"{result.fer2013_accuracy:.4f}, calibration error {result.ece:.4f}, macro F1 {result.macro_f1:.4f}, "
        f"{result.ms_per_face:.3f} ms per face"
    )
    # Without lines between the columns it fits in a terminal of 80, where rich would cut figures off.
    table = Table("emotion", box=box.SIMPLE, padding=0, pad_edge=False)
    for column in ("faces", "prec.", "recall", "F1", *(name[:3] for name in EMOTIONS)):
        table.add_column(column, justify="right")
    for (name, figures), row in zip(result.per_class.items(), result.confusion, strict=True):
        table.add_row(
            name, str(figures.n), *_cells((figures.precision, figures.recall, figures.f1)), *map(str, row)
        )
    console.print(table)


def _cells(figures: Sequence[float]) -> list[str]:
    return [f"{figure:.3f}" for figure in figures]
