"""`python -m models train`: its options, and what they come to together."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from conversion.digests import sha256_of
from models.augmentation import LIGHT, MEDIUM, STRONG
from models.dataset import EMOTIONS, INPUT_SIDE, DataError, load_split, scored_rows
from models.labels import load_labels
from models.recipe import FINE_TUNING, PRETRAINED, QUANTIZING, Recipe
from models.run import Plan, run_training

_RECIPE = Recipe()

AUGMENTATIONS = {"strong": STRONG, "medium": MEDIUM, "light": LIGHT}


def train_command(
    data: Annotated[Path, typer.Option(help="The .npz with train_x, train_votes, val_x, val_votes …")],
    run: Annotated[
        Path, typer.Option(help="Folder for checkpoints, history, curves and trained networks.")
    ] = Path("models/runs/latest"),
    networks: Annotated[
        str,
        typer.Option(
            help="Networks to train, comma-separated; without --labels the first teaches the others. "
            "`teacher` and `inception` come with weights and are trained alone."
        ),
    ] = "large,small",
    epochs: Annotated[int | None, typer.Option(min=1, help="60; 8 for a teacher and --int8.")] = None,
    peak_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Highest learning rate of the cycle: 0.1; 8e-5 for a teacher, 0.005 for --int8."
        ),
    ] = None,
    augmentation: Annotated[
        str | None, typer.Option(help="strong, medium or light: strong; medium for a teacher.")
    ] = None,
    light_share: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="The last part of the run, with light augmentation: 0.12; 0.2 for a teacher.",
        ),
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0.0, help="0.005; 0.02 for a teacher.")] = None,
    oversample: Annotated[
        str,
        typer.Option(help="How often a face of each emotion is drawn in an epoch, in alphabetical order."),
    ] = ",".join(map(str, _RECIPE.oversample)),
    labels: Annotated[
        Path | None, typer.Option(help="What a teacher said, from `python -m models label`: learn from that.")
    ] = None,
    teaching: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Weight of the teacher against the annotators.")
    ] = _RECIPE.teaching,
    continue_from: Annotated[
        Path | None,
        typer.Option(help="Another run's folder: start from those networks that it has, for another cycle."),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Train the INT8 form of the networks of --continue-from: twice as fast to run."
        ),
    ] = False,
    mirrored: Annotated[
        bool,
        typer.Option(
            "--mirrored", help="Teach the mean of a face and its mirror image, for `export --mirrored`."
        ),
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, order and augmentation.")
    ] = _RECIPE.seed,
    bf16: Annotated[
        bool, typer.Option(help="Convolutions in bfloat16: faster on CPUs with AVX512-BF16 or AMX.")
    ] = True,
) -> None:
    """Train networks; the run's folder then holds {NAME}.keras for each, history and curves.

    A run that was cut off goes on when it is started again in the same way.

    Example: python -m models train --data fer2013_train_val.npz --networks small --labels models/runs/labels.npz
    """
    console = Console(markup=False)
    try:
        train_split, validation = (load_split(data, split, INPUT_SIDE) for split in ("train", "val"))
        scored_rows(validation)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    names = [name.strip() for name in networks.split(",")]
    if len(set(names)) < len(names):
        raise typer.BadParameter("name each once", param_hint="--networks")
    if augmentation is not None and augmentation not in AUGMENTATIONS:
        raise typer.BadParameter(f"choose from {', '.join(AUGMENTATIONS)}", param_hint="--augmentation")
    repeats = _repeats(oversample)
    for option, given in (("--peak-rate", peak_rate), ("--weight-decay", weight_decay)):
        if given is not None and not math.isfinite(given):
            raise typer.BadParameter("give a finite number", param_hint=option)
    start = _trained(continue_from, names) if continue_from else {}
    if int8 and len(start) < len(names):
        raise typer.BadParameter("--int8 needs every network of --networks", param_hint="--continue-from")
    base = FINE_TUNING if PRETRAINED.keys() & set(names) else QUANTIZING if int8 else _RECIPE
    recipe = replace(
        base,
        epochs=epochs or base.epochs,
        peak_rate=base.peak_rate if peak_rate is None else peak_rate,
        weight_decay=base.weight_decay if weight_decay is None else weight_decay,
        light_share=base.light_share if light_share is None else light_share,
        augmentation=AUGMENTATIONS[augmentation] if augmentation else base.augmentation,
        oversample=repeats,
        teaching=teaching,
        mirrored=mirrored,
        seed=seed,
    )
    try:
        taught = load_labels(labels, recipe, train_split) if labels else None
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--labels") from error
    made_from = {
        "recipe": asdict(recipe),
        "networks": names,
        "int8": int8,
        "labels": sha256_of(labels) if labels else None,
        "starting networks": {name: sha256_of(path) for name, path in start.items()},
        "data": sha256_of(data),
        # Only where it is off: runs that were begun before it was noted go on.
        **({} if bf16 else {"bf16": False}),
    }
    plan = Plan(
        run=run,
        names=names,
        recipe=recipe,
        faces=train_split,
        validation=validation,
        labels=taught,
        start=start,
        int8=int8,
        bf16=bf16,
        made_from=made_from,
    )
    run_training(console, plan)


def _repeats(oversample: str) -> tuple[int, ...]:
    """How often a face of each emotion is drawn."""
    parts = [part.strip() for part in oversample.split(",")]
    # By their digits, before one is a number that would not fit.
    if (
        len(parts) != len(EMOTIONS)
        or not all(part.isdecimal() and len(part) <= 3 for part in parts)
        or not any(map(int, parts))
    ):
        raise typer.BadParameter(
            f"give {len(EMOTIONS)} whole numbers, 0 to 999, not all of them 0", param_hint="--oversample"
        )
    return tuple(map(int, parts))


def _trained(folder: Path, names: list[str]) -> dict[str, Path]:
    """The files of those of the networks that another run's folder has."""
    files = {name: folder / f"{name}.keras" for name in names}
    found = {name: path for name, path in files.items() if path.is_file()}
    if not found:
        raise typer.BadParameter(f"{folder} has none of {','.join(names)}", param_hint="--continue-from")
    return found
