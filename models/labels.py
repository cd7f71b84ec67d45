"""`python -m models label`: what a teacher says of every training face, seen in several augmented ways.

A student that learns from these labels sees the very same pixels as its teacher did (Beyer et al., "Knowledge
distillation: a good teacher is patient and consistent", 2022). The pixels are not stored: recipe, seed and number
of a view make them again. A teacher is asked once for all students and cycles.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from conversion.digests import sha256_of
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


class LabelledViews:
    """The views that are labelled so far, one file each in a folder, so that what is cut off goes on.

    `made_from` are the files that labels depend on: the teachers and the faces. Raises DataError when the folder holds
    views that were made from others, or of another recipe.
    """

    def __init__(self, folder: Path, made_from: Sequence[Path], recipe: Recipe) -> None:
        self._folder = folder
        made_by = json.dumps(
            {"made_from": [sha256_of(path) for path in made_from], "recipe": _fingerprint(recipe)}
        )
        sign = folder / "made-by.json"
        if not sign.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            sign.write_text(made_by)
        elif sign.read_text() != made_by:
            raise DataError(
                f"{folder}: begun with other teachers, faces or another recipe; delete it to begin anew"
            )

    def get(self, light: bool, number: int, label: Callable[[], NDArray[np.float16]]) -> NDArray[np.float16]:
        """Return the labels of a view, asking `label` for them if they are not there yet."""
        path = self._folder / f"{'light' if light else 'strong'}-{number}.npy"
        if not path.is_file():
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, label())
            part.replace(path)
        said: NDArray[np.float16] = np.load(path)
        return said

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self._folder)


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

    A run that was cut off goes on when it is started again.

    Example: python -m models label models/runs/teacher/teacher.keras --data fer2013_train_val.npz
    """
    try:
        split = load_split(data, "train")
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    for path in teachers:
        if not path.is_file():
            raise typer.BadParameter(f"{path}: no such file", param_hint="TEACHERS")
    recipe = Recipe()
    try:
        labelled = LabelledViews(output.with_name(f"{output.name}.views"), [*teachers, data], recipe)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    import keras
    import tensorflow as tf

    from models.training import steps_per_epoch, view

    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": bf16})
    ask = _asking([keras.saving.load_model(path, compile=False) for path in teachers])
    targets, keep = soft_targets(split.votes)
    images, targets = split.images[keep], targets[keep]
    steps = steps_per_epoch(targets, recipe)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("labelling", total=(views + light_views) * steps)

        def label(number: int, light: bool) -> NDArray[np.float16]:
            rows = []
            for faces, _ in view(images, targets, recipe, number, light):
                rows.append(ask(tf.constant(faces)).numpy().astype(np.float16))
                progress.advance(task)
            return np.concatenate(rows)

        def all_views(light: bool, count: int) -> NDArray[np.float16]:
            said = []
            for number in range(count):
                said.append(labelled.get(light, number, partial(label, number, light)))
                progress.update(task, completed=steps * (number + 1 + (views if light else 0)))
            return np.stack(said)

        labels = Labels(all_views(False, views), all_views(True, light_views))
    save_labels(output, labels, recipe)
    labelled.remove()
    typer.echo(f"{output}: {output.stat().st_size:,} bytes")


def _asking(networks: Sequence[Any]) -> Any:
    """Return a function from faces [n, h, w, 1] to the mean of what the networks say of them and of their mirror
    images, probabilities [n, 7]. A mirrored look makes the teacher better by about a point of a hundred."""
    import tensorflow as tf

    def ask(faces: tf.Tensor) -> tf.Tensor:
        looks = (faces, faces[:, :, ::-1])
        said = [tf.nn.softmax(network(look, training=False)) for network in networks for look in looks]
        return tf.add_n(said) / len(said)

    return tf.function(ask, autograph=False)
