"""A training run from its plan to its networks: its folder, its epochs, and going on where it was cut off."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from numpy.typing import ArrayLike, NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from conversion.atomic import write_atomically
from conversion.errors import ConversionError
from models.dataset import INPUT_SIDE, DataError, Split, scored_rows, soft_targets
from models.labels import Labels
from models.metrics import accuracy, cross_entropy
from models.networks import ModelError, load_network
from models.recipe import PRETRAINED, Recipe
from models.resuming import alone, begin

if TYPE_CHECKING:
    # TensorFlow takes seconds to import: not before the arguments have proven good.
    import keras
    import tensorflow as tf

    from models.training import Size, Trainer

HISTORY = "history.json"
# The steps of INT8's activations are measured on at most this many.
CALIBRATION_FACES = 2048


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does, checked. `run` is the folder of its results, `start` the files of the networks to start from;
    what was cut off goes on only where it was `made_from` the same."""

    run: Path
    names: list[str]
    recipe: Recipe
    faces: Split
    validation: Split
    labels: Labels | None
    start: dict[str, Path]
    int8: bool
    bf16: bool
    made_from: Mapping[str, Any]


def run_training(console: Console, plan: Plan) -> None:
    """Train what is planned, or go on with it; the run's folder then holds the networks, history and curves.

    Raises typer.BadParameter where a part of the plan cannot be used, typer.Exit where an epoch cannot be kept, or is
    not worth it because training diverged.
    """
    import keras
    import tensorflow as tf

    from models.training import Trainer, steps_per_epoch

    recipe = plan.recipe
    sizes, weights = _sizes(plan.names)
    # The graph rewrite keeps weights, batch statistics and losses in float32 and was 1.3x faster than Keras's
    # own mixed_bfloat16 policy on a CPU with AVX512-BF16.
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": plan.bf16})
    keras.utils.set_random_seed(recipe.seed)
    targets, keep = soft_targets(plan.faces.votes)
    images, targets = plan.faces.images[keep], targets[keep]
    try:
        steps = steps_per_epoch(targets, recipe)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    for views in (plan.labels.strong, plan.labels.light) if plan.labels else ():
        if len(views) and views.shape[1] != steps * recipe.batch_size:
            raise typer.BadParameter(
                f"a view has {views.shape[1]} faces, expected {steps * recipe.batch_size}",
                param_hint="--labels",
            )
    trained = _trained(plan.start)
    if plan.int8:
        sizes = _quantize(trained, plan.names, images)
    trainer = Trainer(sizes, recipe, labelled=plan.labels is not None, weights=weights)
    if plan.start:
        try:
            trainer.start_from(trained)
        except ValueError as error:
            raise typer.BadParameter(
                f"no networks of these sizes: {error}", param_hint="--continue-from"
            ) from error
        console.print(f"Starting from trained networks: {', '.join(plan.start)}")
    checkpoint_folder = plan.run / "checkpoints"
    with ExitStack() as held:
        try:
            begin(checkpoint_folder, plan.made_from)
            held.enter_context(alone(checkpoint_folder))
        except DataError as error:
            raise typer.BadParameter(f"{error}, or choose another --run", param_hint="--run") from error
        checkpoints, history = _restore(plan.run, trainer, checkpoint_folder)
        if history:
            console.print(f"Going on after epoch {len(history)} of {recipe.epochs}")
        try:
            about = {"networks": plan.names, **asdict(recipe)}
            write_atomically(plan.run / "recipe.json", (json.dumps(about, indent=2) + "\n").encode())
        except ConversionError as error:
            raise typer.BadParameter(str(error), param_hint="--run") from error
        console.print(
            f"{len(images)} faces, {steps} steps of {recipe.batch_size} per epoch, networks: {', '.join(plan.names)}"
        )
        _train_epochs(console, plan, trainer, images, targets, checkpoints, history)
        _save_networks(plan.run, trainer, sizes, history)


def _train_epochs(
    console: Console,
    plan: Plan,
    trainer: "Trainer",
    images: NDArray[np.uint8],
    targets: NDArray[np.float32],
    checkpoints: "tf.train.CheckpointManager",
    history: list[dict[str, float]],
) -> None:
    """Train the epochs that `history` lacks, and add the figures of each to it."""
    from models.training import batches, settle, steps_per_epoch

    epochs, steps = plan.recipe.epochs, steps_per_epoch(targets, plan.recipe)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=epochs * steps, completed=len(history) * steps)
        for epoch in range(len(history), epochs):
            losses = []
            for number, batch in enumerate(batches(images, targets, plan.recipe, epoch, plan.labels)):
                losses.append(trainer.train_step(*batch, progress=(epoch + number / steps) / epochs))
                progress.advance(task)
            figures = {"epoch": epoch + 1.0}
            for index, name in enumerate(plan.names):
                _demand_finite([each[index] for each in losses], name, epoch)
                figures[f"{name}_loss"] = float(np.mean(losses, axis=0)[index])
                if name in PRETRAINED:
                    # Averaging moves what the convolutions give (of `inception` by 1.7 standard deviations), unseen by
                    # the one normalisation that stands behind all of them.
                    settle(trainer.averaged[index], images, targets, plan.recipe)
                figures |= _validate(trainer.averaged[index], name, epoch, plan)
            history.append(figures)
            trainer.epoch.assign(epoch + 1)
            _keep_epoch(plan.run, history, checkpoints)
            console.print(" ".join(f"{key} {value:.4g}" for key, value in figures.items()))


def _sizes(names: list[str]) -> tuple[dict[str, "Size"], Path | None]:
    """The sizes of the networks, and the file that a teacher's weights come from."""
    from models.architecture import VARIANTS
    from models.fetch import ensure_fetched
    from models.inception import Inception
    from models.mobilenet import MobileNet
    from models.sources import ModelSourceError, read_source

    known: dict[str, Size] = {**VARIANTS, "teacher": MobileNet(), "inception": Inception()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"no such size: {', '.join(unknown)}; sizes are {', '.join(known)}")
    teachers = PRETRAINED.keys() & set(names)
    if teachers and len(names) > 1:
        raise typer.BadParameter("a teacher is trained alone: its rates are not the others'")
    try:
        weights = ensure_fetched(read_source(PRETRAINED[names[0]])) if teachers else None
    except ModelSourceError as error:
        raise typer.BadParameter(str(error), param_hint="--networks") from error
    return {name: known[name] for name in names}, weights


def _trained(start: Mapping[str, Path]) -> dict[str, "keras.Model"]:
    try:
        # One that was exported has the same weights.
        return {name: load_network(path, INPUT_SIDE) for name, path in start.items()}
    except ModelError as error:
        raise typer.BadParameter(str(error), param_hint="--continue-from") from error


def _quantize(
    trained: dict[str, "keras.Model"], names: list[str], images: NDArray[np.uint8]
) -> dict[str, "Size"]:
    """Put the INT8 forms of the trained networks in their places; return their sizes."""
    from models.architecture import VARIANTS
    from models.quantization import quantize

    faces = images[:: len(images) // CALIBRATION_FACES + 1]
    sizes: dict[str, Size] = {}
    try:
        for name in names:
            sizes[name], trained[name] = quantize(trained[name], VARIANTS[name], faces, name)
    except (KeyError, ValueError) as error:
        raise typer.BadParameter(f"no network of this kind to make INT8 of: {error}") from error
    return sizes


def _restore(
    run: Path, trainer: "Trainer", folder: Path
) -> tuple["tf.train.CheckpointManager", list[dict[str, float]]]:
    """Put the trainer where the run's last epoch left it. Returns what keeps epochs, and the figures until then."""
    import tensorflow as tf

    try:
        checkpoints = tf.train.CheckpointManager(trainer.checkpoint, folder, max_to_keep=2)
        if not checkpoints.restore_or_initialize():
            return checkpoints, []
        return checkpoints, json.loads((run / HISTORY).read_text())[: int(trainer.epoch.numpy())]
    except (tf.errors.OpError, IndexError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise typer.BadParameter(
            f"{run}: its last epoch cannot be read ({reason}); delete it to begin anew, or choose another --run",
            param_hint="--run",
        ) from error


def _keep_epoch(
    run: Path, history: list[dict[str, float]], checkpoints: "tf.train.CheckpointManager"
) -> None:
    import tensorflow as tf

    try:
        # History first: a checkpoint whose history is missing could not be resumed.
        write_atomically(run / HISTORY, (json.dumps(history, indent=1) + "\n").encode())
        checkpoints.save()
    except (ConversionError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split()).rpartition("; ")[2]
        typer.echo(
            f"error: epoch {len(history)} could not be kept ({reason}); when there is room, start again in the same"
            f" way: the run goes on after epoch {len(history) - 1}",
            err=True,
        )
        raise typer.Exit(1) from error


def _save_networks(
    run: Path, trainer: "Trainer", sizes: Mapping[str, "Size"], history: list[dict[str, float]]
) -> None:
    from models.export import deflated
    from models.plots import plot_curves
    from models.quantization import Quantized, rounded_for_good

    try:
        for (name, size), averaged in zip(sizes.items(), trainer.averaged, strict=True):
            network = rounded_for_good(averaged, size) if isinstance(size, Quantized) else averaged
            write_atomically(run / f"{name}.keras", deflated(network))
        plot_curves(history, list(sizes), run / "curves.png")
    except (ConversionError, OSError) as error:
        typer.echo(
            f"error: {error}; when there is room, start again in the same way: no epoch is trained again",
            err=True,
        )
        raise typer.Exit(1) from error


def _validate(network: object, name: str, epoch: int, plan: Plan) -> dict[str, float]:
    from models.training import predict_logits

    truth, kept = scored_rows(plan.validation)
    faces = plan.validation.images[kept]
    looks = (faces, faces[:, :, ::-1]) if plan.recipe.mirrored else (faces,)
    logits = np.mean([predict_logits(network, look) for look in looks], axis=0)
    _demand_finite(logits, name, epoch)
    figures = {"accuracy": accuracy(logits, truth[kept]), "cross_entropy": cross_entropy(logits, truth[kept])}
    return {f"{name}_{figure}": value for figure, value in figures.items()}


def _demand_finite(numbers: ArrayLike, name: str, epoch: int) -> None:
    """Raise typer.Exit where a network of NaN would be kept, of which nothing can be made any more."""
    if not np.isfinite(numbers).all():
        typer.echo(
            f"error: epoch {epoch + 1}: {name} answers NaN or infinity, so this epoch is not kept; choose a lower"
            " --peak-rate, and another --run",
            err=True,
        )
        raise typer.Exit(1)
