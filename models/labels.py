"""`python -m models label`: what a teacher says of every training face, seen in several augmented ways.

A student that learns from these labels sees the very same pixels as its teacher did (Beyer et al., "Knowledge
distillation: a good teacher is patient and consistent", 2022). The pixels are not stored: recipe, seed and number
of a view make them again. A teacher is asked once for all students and cycles.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated
from zipfile import BadZipFile

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.dataset import DataError, load_split, soft_targets
from models.recipe import Recipe

# What the pixels of a view depend on, of all that a recipe says.
_OF_VIEWS = ("batch_size", "oversample", "augmentation", "seed")


@dataclass(frozen=True, slots=True)
class Labels:
    """A teacher's probabilities, float16 [views, faces of a view, 7], for views with the recipe's own augmentation
    (`strong`) and for light ones, each in the order in which a view has its faces."""

    strong: NDArray[np.float16]
    light: NDArray[np.float16]


def save_labels(path: Path, labels: Labels, recipe: Recipe) -> None:
    """Write labels and what their views depend on as an .npz file."""
    np.savez(path, strong=labels.strong, light=labels.light, recipe=np.array(_fingerprint(recipe)))


def load_labels(path: Path, recipe: Recipe) -> Labels:
    """Read labels. Raises DataError when the file is unreadable, or when `recipe` makes other views than the ones
    that were labelled."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            labels, made_by = Labels(archive["strong"], archive["light"]), str(archive["recipe"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (BadZipFile, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a file of labels ({error})") from error
    if made_by != _fingerprint(recipe):
        raise DataError(f"{path}: labels views of another recipe: {made_by}")
    return labels


def _fingerprint(recipe: Recipe) -> str:
    values = asdict(recipe)
    return json.dumps({name: values[name] for name in _OF_VIEWS})


def label_command(
    teachers: Annotated[
        list[Path],
        typer.Argument(help="Trained networks that give logits, as RUN/teacher.keras; of several, the mean."),
    ],
    data: Annotated[Path, typer.Option(help="The .npz with train_x and train_votes.")],
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("models/runs/labels.npz"),
    views: Annotated[int, typer.Option(min=1, help="How many strongly augmented views.")] = 8,
    light_views: Annotated[int, typer.Option(min=1, help="How many lightly augmented ones.")] = 2,
    bf16: Annotated[bool, typer.Option(help="Convolutions in bfloat16, as in train.")] = True,
) -> None:
    """Ask teachers about augmented training faces; `train --labels` then learns from their answers.

    Example: python -m models label models/runs/teacher/teacher.keras --data fer2013_train_val.npz
    """
    try:
        split = load_split(data, "train")
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    for path in teachers:
        if not path.is_file():
            raise typer.BadParameter(f"{path}: no such file", param_hint="TEACHERS")
    import keras
    import tensorflow as tf

    from models.training import steps_per_epoch, view

    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": bf16})
    networks = [keras.saving.load_model(path, compile=False) for path in teachers]

    def answer(faces: tf.Tensor) -> tf.Tensor:
        answers = [tf.nn.softmax(network(faces, training=False)) for network in networks]
        return tf.add_n(answers) / len(answers)

    graph = tf.function(answer, autograph=False)
    recipe = Recipe()
    targets, keep = soft_targets(split.votes)
    images, targets = split.images[keep], targets[keep]
    steps = steps_per_epoch(targets, recipe)
    said: dict[bool, list[NDArray[np.float16]]] = {False: [], True: []}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("labelling", total=(views + light_views) * steps)
        for light, count in ((False, views), (True, light_views)):
            for number in range(count):
                rows = []
                for faces, _ in view(images, targets, recipe, number, light):
                    rows.append(graph(tf.constant(faces)).numpy().astype(np.float16))
                    progress.advance(task)
                said[light].append(np.concatenate(rows))
    output.parent.mkdir(parents=True, exist_ok=True)
    save_labels(output, Labels(np.stack(said[False]), np.stack(said[True])), recipe)
    typer.echo(f"{output}: {output.stat().st_size:,} bytes")
