"""`python -m models pareto`: accuracy against time of several model files, scored and timed in one run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from conversion.telling import told
from models.dataset import DataError, Split, load_split
from models.evaluate import check_plot, drawn, evaluate
from models.networks import ModelError
from models.predictor import Predictor, load_predictor

_TURNS = 30
_UNCOUNTED, _COUNTED = 5, 10


@dataclass(frozen=True, slots=True)
class Variant:
    """One row: a model file, looked at once or also at the mirrored face (the mean of both).

    Shares are in 0..1, as `models.evaluate.Evaluation` has them; `ms` is the mean time of one face.
    """

    name: str
    ferplus_accuracy: float
    ece: float
    disgust_recall: float
    fear_recall: float
    ms: float


def pareto_command(
    models: Annotated[list[Path], typer.Argument(help="Converted .onnx files; any number.")],
    data: Annotated[Path, typer.Option(help="An .npz with {split}_x, {split}_y and {split}_votes.")],
    split: Annotated[str, typer.Option(help="Which split of the file.")] = "val",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against time into this picture.")] = None,
) -> None:
    """Score and time model files, each with and without a second look at the mirrored face.

    Example, after python -m models convert fer:

    python -m models pareto models/build/modelo_emociones.onnx models/build/fer.onnx --data fer2013_train_val.npz
    """
    if plot is not None:
        check_plot(plot)
    try:
        names = distinct_names(models)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="MODELS") from None
    try:
        faces = load_split(data, split)
        predictors = {
            name: load_predictor(path, timed=True) for name, path in zip(names, models, strict=True)
        }
        variants = compare(predictors, faces)
    except (DataError, ModelError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    status = told(
        lambda: (
            print(json.dumps([asdict(each) for each in variants], allow_nan=False))
            if as_json
            else _print(variants)
        ),
        "the models are scored",
    )
    # Last: a disk that is full does not cost the figures.
    if plot is not None:
        from models.plots import plot_pareto

        with drawn(plot):
            plot_pareto([(each.name, each.ms, each.ferplus_accuracy) for each in variants], plot)
    if status:
        raise typer.Exit(status)


def _print(variants: list[Variant]) -> None:
    name = Column("variant", overflow="fold")  # a long one goes on in the next line
    table = Table(name, "FER+ accuracy", "ece", "disgust", "fear", "ms per face", "front")
    for each in variants:
        figures = (each.ferplus_accuracy, each.ece, each.disgust_recall, each.fear_recall, each.ms)
        table.add_row(
            each.name, *(f"{figure:.3f}" for figure in figures), "*" if on_front(each, variants) else ""
        )
    Console(markup=False).print(table)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: its stem, or where others have the same, the shortest end of its path that they
    don't have. Raises ValueError for a path that is given twice."""
    if len(set(paths)) < len(paths):
        raise ValueError("give each file once")
    names = [path.stem for path in paths]
    length = 0
    while len(set(names)) < len(names):
        length += 1
        names = [
            "/".join(path.parts[-length:]) if names.count(name) > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]
    return names


def compare(predictors: dict[str, Predictor], faces: Split) -> list[Variant]:
    """Score each predictor on `faces`, by itself and with the mirrored faces; fastest first. Raises DataError."""
    times = _interleaved_ms(predictors, faces.images)
    variants = []
    for name, predictor in predictors.items():
        plain = predictor.probabilities(faces.images)
        mirrored = predictor.probabilities(np.ascontiguousarray(faces.images[:, :, ::-1]))
        both = np.asarray((plain + mirrored) / 2, np.float32)
        for suffix, probabilities, looks in (("", plain, 1), (" + mirrored", both, 2)):
            figures = evaluate(probabilities, faces, times[name, looks])
            variants.append(
                Variant(
                    name=name + suffix,
                    ferplus_accuracy=figures.ferplus_accuracy,
                    ece=figures.ece,
                    disgust_recall=figures.per_class["disgust"].recall,
                    fear_recall=figures.per_class["fear"].recall,
                    ms=times[name, looks],
                )
            )
    return sorted(variants, key=lambda each: each.ms)


def on_front(variant: Variant, variants: list[Variant]) -> bool:
    """Whether no other variant is as good in both, accuracy and time, and better in one."""
    own = (variant.ms, -variant.ferplus_accuracy)
    others = ((each.ms, -each.ferplus_accuracy) for each in variants)
    return not any(other != own and other[0] <= own[0] and other[1] <= own[1] for other in others)


def _interleaved_ms(
    predictors: dict[str, Predictor], images: NDArray[np.uint8]
) -> dict[tuple[str, int], float]:
    """Milliseconds of one face, and of a face with its mirror image as one batch, for each predictor: the mean over
    faces of each one's median.

    They take turns of a few faces, so that what else the machine does falls on all alike, and the first faces of a
    turn don't count: they find the caches full of the other networks' weights.
    """
    times: dict[tuple[str, int], list[float]] = {(name, looks): [] for name in predictors for looks in (1, 2)}
    for turn in range(_TURNS):
        for (name, looks), taken in times.items():
            for number in range(_UNCOUNTED + _COUNTED):
                face = images[(turn * _COUNTED + number) % len(images)]
                prepared = predictors[name].prepared(np.stack([face, face[:, ::-1]])[:looks])
                milliseconds = predictors[name].median_ms(prepared)
                if number >= _UNCOUNTED:
                    taken.append(milliseconds)
    return {key: float(np.mean(taken)) for key, taken in times.items()}
