"""`python -m models label`: ask teachers about the training faces, once for all students and cycles."""

import io
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from conversion.atomic import check_writable, write_atomically
from conversion.digests import sha256_of
from conversion.errors import ConversionError
from models.dataset import EMOTIONS, INPUT_SIDE, DataError, load_split, soft_targets
from models.labels import Labels, fingerprint, save_labels
from models.networks import ModelError, load_trained
from models.recipe import Recipe
from models.resuming import alone, begin


class LabelledViews:
    """The views that are labelled so far, one file each in a folder, so that what is cut off goes on.

    Raises DataError when the folder holds views of other `teachers`, of other faces in the file `data`, of another
    recipe, or asked for with the other `bf16`.
    """

    def __init__(
        self, folder: Path, teachers: Sequence[Path], data: Path, recipe: Recipe, *, bf16: bool
    ) -> None:
        self._folder = folder
        made_from = {
            "teachers": [sha256_of(path) for path in teachers],
            "data": sha256_of(data),
            "recipe": fingerprint(recipe),
            # Only where it is off: labels that were begun before it was noted go on.
            **({} if bf16 else {"bf16": False}),
        }
        begin(folder, made_from)

    def get(self, light: bool, number: int, label: Callable[[], NDArray[np.float16]]) -> NDArray[np.float16]:
        """Return the labels of a view, asking `label` for them if they are not there yet, or damaged.

        Raises ConversionError where they cannot be kept.
        """
        path = self._folder / f"{'light' if light else 'strong'}-{number}.npy"
        try:
            kept: NDArray[np.float16] = np.load(path)
        except (OSError, EOFError, ValueError):
            said = label()
            # Not into the file itself: where a disk is full, NumPy may lose the end and say nothing.
            content = io.BytesIO()
            np.save(content, said)
            write_atomically(path, content.getvalue())
            return said
        return kept

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
    views: Annotated[int, typer.Option(min=0, help="How many strongly augmented views.")] = 8,
    light_views: Annotated[
        int, typer.Option(min=0, help="How many lightly augmented ones: all, for `train --light-share 1`.")
    ] = 2,
    bf16: Annotated[bool, typer.Option(help="Convolutions in bfloat16, as in train.")] = True,
) -> None:
    """Ask teachers about augmented training faces; `train --labels` then learns from their answers.

    A run that was cut off goes on when it is started again in the same way.

    Example: python -m models label models/runs/teacher/teacher.keras --data fer2013_train_val.npz
    """
    if output.suffix != ".npz":
        raise typer.BadParameter(f"{output}: name a .npz file", param_hint="--output")
    if views + light_views == 0:
        raise typer.BadParameter("ask about one view or more", param_hint="--views")
    try:
        check_writable(output)
    except ConversionError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    recipe = Recipe()
    try:
        split = load_split(data, "train", INPUT_SIDE)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    import tensorflow as tf

    from models.training import steps_per_epoch, view

    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": bf16})
    targets, keep = soft_targets(split.votes)
    images, targets = split.images[keep], targets[keep]
    try:
        steps = steps_per_epoch(targets, recipe)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    try:
        ask = _asking([load_trained(path) for path in teachers])
    except ModelError as error:
        raise typer.BadParameter(str(error), param_hint="TEACHERS") from error
    folder, held = output.with_name(f"{output.name}.views"), ExitStack()
    try:
        labelled = LabelledViews(folder, teachers, data, recipe, bf16=bf16)
        held.enter_context(alone(folder))
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with held, Progress(*columns) as progress:
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
            return np.array(said, np.float16).reshape(count, steps * recipe.batch_size, len(EMOTIONS))

        try:
            labels = Labels(all_views(False, views), all_views(True, light_views))
            save_labels(output, labels, recipe, split)
        except ConversionError as error:
            typer.echo(
                f"error: {error}; when there is room, start again in the same way: what is labelled is kept",
                err=True,
            )
            raise typer.Exit(1) from error
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
