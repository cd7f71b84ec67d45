"""`python -m models export`: a trained network, calibrated, as the Keras file that ships."""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from conversion.atomic import check_writable, write_atomically
from conversion.errors import ConversionError
from models.calibration import fit_biases, fit_temperature, settle_temperature, short_of, softmax
from models.dataset import EMOTIONS, INPUT_SIDE, DataError, Split, load_split, scored_rows, soft_targets
from models.metrics import accuracy, expected_calibration_error
from models.networks import ModelError, load_trained
from models.recipe import Recipe


def export_command(
    networks: Annotated[
        list[Path],
        typer.Argument(help="NETWORK.keras of a training run; of several cycles, their weights' mean."),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="The .npz whose validation part it is calibrated on; a mean needs its training part, too."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output")] = Path("models/modelo_emociones.keras"),
    mirrored: Annotated[
        bool,
        typer.Option(
            "--mirrored",
            help="Let the network look at the mirrored face, too: better, and slower.",
        ),
    ] = False,
    unsure_share: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1.0,
            help="With --mirrored: take the second look only for this share of the faces, those that the first is"
            " least sure of.",
        ),
    ] = 1.0,
) -> None:
    """Fit one temperature and the rare emotions' biases on the validation part, fold them and a softmax into the
    network, and save that.

    Example: python -m models export models/runs/latest/small.keras --data fer2013_train_val.npz
    """
    if output.suffix != ".keras":
        raise typer.BadParameter(f"{output}: name a .keras file", param_hint="--output")
    if unsure_share < 1 and not mirrored:
        raise typer.BadParameter(
            "is about the second look: give --mirrored, too", param_hint="--unsure-share"
        )
    if output.exists() and any(path.exists() and path.samefile(output) for path in networks):
        raise typer.BadParameter(f"{output}: would overwrite the trained network", param_hint="--output")
    try:
        check_writable(output)
    except ConversionError as error:
        raise typer.BadParameter(str(error), param_hint="--output") from error
    try:
        validation = load_split(data, "val", INPUT_SIDE)
        # A mean needs training faces for its batch statistics; a network by itself has its own.
        train = load_split(data, "train", INPUT_SIDE) if len(networks) > 1 else None
        truth, kept = scored_rows(validation)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    from models.architecture import with_temperature
    from models.training import predict_logits

    cycles = _load(networks, mirrored)
    trained = cycles[0]
    if train is not None:
        _average(cycles, train)
    faces, truth = validation.images[kept], truth[kept]
    exported = _looking_twice(trained, faces, unsure_share) if mirrored else trained
    logits = predict_logits(exported, faces)
    temperature = fit_temperature(logits, truth)
    biases = fit_biases(logits / temperature, truth)
    kernel, offsets = trained.get_layer("logits").get_weights()
    trained.get_layer("logits").set_weights([kernel, offsets + biases * np.float32(temperature)])
    # Asked again, for with the biases other faces may be unsure.
    biased = predict_logits(exported, faces)
    temperature = settle_temperature(biased, truth, temperature)
    try:
        write_atomically(output, deflated(with_temperature(exported, temperature)))
    except (ConversionError, OSError) as error:
        typer.echo(f"error: {error}; what was there before is untouched", err=True)
        raise typer.Exit(1) from error
    print("biases: " + ", ".join(f"{name} {bias:.1f}" for name, bias in zip(EMOTIONS, biases, strict=True)))
    for emotion, recall in short_of(biased, truth).items():
        print(f"{EMOTIONS[emotion]} is still found in {recall:.0%} of its faces only")
    for name, divisor, scores in (("before", 1.0, logits), ("after", temperature, biased)):
        probabilities = softmax(scores / divisor)
        ece = expected_calibration_error(probabilities, truth)
        print(
            f"{name}: temperature {divisor:.3f}, accuracy {accuracy(probabilities, truth):.4f}, ece {ece:.4f}"
        )
    print(f"{output}: {output.stat().st_size:,} bytes")


def _load(networks: list[Path], mirrored: bool) -> list[Any]:
    """The networks, checked for what is to be made of them."""
    from conversion.tensorflow_quietly import keras

    try:
        cycles = [load_trained(path) for path in networks]
    except ModelError as error:
        raise typer.BadParameter(str(error), param_hint="NETWORKS") from error
    trained = cycles[0]
    names = [layer.name for layer in trained.layers]
    if "logits" not in names or trained.get_layer("logits").output is not trained.output:
        raise typer.BadParameter(f"{networks[0]}: does not end in a layer `logits`", param_hint="NETWORKS")
    if mirrored and "scale" not in names:
        raise typer.BadParameter(
            f"{networks[0]}: has no layer `scale` to mirror behind", param_hint="--mirrored"
        )
    is_normalised = any(isinstance(layer, keras.layers.BatchNormalization) for layer in trained.layers)
    if len(cycles) > 1 and not is_normalised:
        raise typer.BadParameter(
            "the mean of networks in INT8 is none in INT8: export that of those in floats, and train it --int8"
        )
    return cycles


def _looking_twice(network: Any, faces: NDArray[np.uint8], unsure_share: float) -> Any:
    """The network with a second look at this share of the faces, those that the first is least sure of."""
    from models.architecture import with_mirrored_look
    from models.training import predict_logits

    unsure_below = None
    if unsure_share < 1:
        highest = softmax(predict_logits(network, faces)).max(axis=1)
        unsure_below = float(np.quantile(highest, unsure_share))
    return with_mirrored_look(network, unsure_below)


def _average(cycles: list[Any], train: Split) -> None:
    """Give the first of `cycles` the mean of all their weights, and batch statistics of its own."""
    from models.training import settle

    try:
        cycles[0].set_weights(mean_weights([each.get_weights() for each in cycles]))
    except ValueError as error:
        raise typer.BadParameter("networks of different sizes have no mean", param_hint="NETWORKS") from error
    targets, kept = soft_targets(train.votes)
    try:
        settle(cycles[0], train.images[kept], targets[kept], Recipe())
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error


def deflated(network: Any) -> bytes:
    """Return a Keras network as a .keras file whose parts are compressed. Keras stores them as they are, and reads
    either.

    Weights that are whole steps take some 60 % of the room then.
    """
    compressed = io.BytesIO()
    with tempfile.TemporaryDirectory(prefix="visionai-export-") as folder:
        path = Path(folder) / "network.keras"
        network.save(path)
        with (
            zipfile.ZipFile(path) as stored,
            zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        ):
            for entry in stored.infolist():
                archive.writestr(entry.filename, stored.read(entry))
    return compressed.getvalue()


def mean_weights(networks: list[list[NDArray[np.float32]]]) -> list[NDArray[np.float32]]:
    """Return the mean of each weight over networks of one size, of which each was trained on from the one before.

    Such networks often lie in one valley of the loss, and their mean deeper in it than either (Izmailov et al.,
    "Averaging Weights Leads to Wider Optima and Better Generalization", 2018). Raises ValueError for networks of
    different sizes.
    """
    return [np.mean(same, axis=0, dtype=np.float32) for same in zip(*networks, strict=True)]
