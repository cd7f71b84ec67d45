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
from models.dataset import EMOTIONS, INPUT_SIDE, DataError, Split, load_split, scored_rows, soft_targets
from models.metrics import accuracy, cross_entropy, expected_calibration_error
from models.networks import ModelError, load_trained
from models.recipe import Recipe

# Temperatures outside this are no calibration but a broken network.
_COLDEST, _HOTTEST = 0.25, 4.0
_BIN_COUNTS = range(8, 31)
# e^2: a class is not made more than seven times as likely.
_MOST_BIAS = 2.0
# What share of its faces an emotion is to be found in more than.
LEAST_RECALL = 0.5


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
    from conversion.tensorflow_quietly import keras
    from models.architecture import with_mirrored_look, with_temperature
    from models.training import predict_logits

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
    if train is not None:
        if not any(isinstance(layer, keras.layers.BatchNormalization) for layer in trained.layers):
            raise typer.BadParameter(
                "the mean of networks in INT8 is none in INT8: export that of those in floats, and train it --int8"
            )
        _average(cycles, train)
    faces, exported = validation.images[kept], trained
    if mirrored:
        unsure_below = None
        if unsure_share < 1:
            highest = _softmax(predict_logits(trained, faces)).max(axis=1)
            unsure_below = float(np.quantile(highest, unsure_share))
        exported = with_mirrored_look(trained, unsure_below)
    logits = predict_logits(exported, faces)
    temperature = fit_temperature(logits, truth[kept])
    biases = fit_biases(logits / temperature, truth[kept])
    kernel, offsets = trained.get_layer("logits").get_weights()
    trained.get_layer("logits").set_weights([kernel, offsets + biases * np.float32(temperature)])
    # Asked again, for with the biases other faces may be unsure.
    biased = predict_logits(exported, faces)
    temperature = settle_temperature(biased, truth[kept], temperature)
    try:
        write_atomically(output, deflated(with_temperature(exported, temperature)))
    except (ConversionError, OSError) as error:
        typer.echo(f"error: {error}; what was there before is untouched", err=True)
        raise typer.Exit(1) from error
    print("biases: " + ", ".join(f"{name} {bias:.1f}" for name, bias in zip(EMOTIONS, biases, strict=True)))
    for emotion, recall in short_of(biased, truth[kept]).items():
        print(f"{EMOTIONS[emotion]} is still found in {recall:.0%} of its faces only")
    for name, divisor, scores in (("before", 1.0, logits), ("after", temperature, biased)):
        probabilities = _softmax(scores / divisor)
        ece = expected_calibration_error(probabilities, truth[kept])
        print(
            f"{name}: temperature {divisor:.3f}, accuracy {accuracy(probabilities, truth[kept]):.4f}, ece {ece:.4f}"
        )
    print(f"{output}: {output.stat().st_size:,} bytes")


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


def fit_temperature(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    """The temperature that gives the least cross-entropy, by golden-section search (it is convex in 1/T).

    `logits` is [n, k], `truth` [n] with 0..k-1. Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    golden = (np.sqrt(5) - 1) / 2
    low, high = 1 / _HOTTEST, 1 / _COLDEST
    while high - low > 1e-4:
        left, right = high - golden * (high - low), low + golden * (high - low)
        if cross_entropy(logits * left, truth) < cross_entropy(logits * right, truth):
            high = right
        else:
            low = left
    return float(2 / (low + high))


def settle_temperature(logits: NDArray[np.floating], truth: NDArray[np.int64], fitted: float) -> float:
    """Return which temperature within a tenth of the `fitted` one has the least calibration error.

    Near the least cross-entropy that hardly changes for several hundredths. The error is the mean over 8 to 30 bins:
    of one count alone it depends on where the edges fall, by half a point for 3,000 rows. `logits` is [n, k], `truth`
    [n] with 0..k-1.
    """

    def error(temperature: float) -> float:
        probabilities = _softmax(logits / temperature)
        return float(
            np.mean([expected_calibration_error(probabilities, truth, bins) for bins in _BIN_COUNTS])
        )

    return float(min(fitted * np.linspace(0.9, 1.1, 41), key=error))


def fit_biases(logits: NDArray[np.floating], truth: NDArray[np.int64]) -> NDArray[np.float32]:
    """What to add to each emotion's logit so that its recall is above LEAST_RECALL: float32 [k], the least multiples
    of 0.1, at most 2, for the classes that fall short, and 0 for the others.

    Above, for a runtime that rounds otherwise may take a face away. Where two classes take faces from each other and
    no biases find enough of both, these are the least with which the fewest classes fall short.

    `logits` is [n, k], `truth` [n] with 0..k-1. A rare class loses doubtful faces to common ones, by their number
    in training; a bias gives some back. A class without rows keeps 0.
    """
    biases = best = np.zeros(logits.shape[1], np.float32)
    fewest = len(short_of(logits, truth))
    while True:
        before = biases
        biases = _raised(logits, truth, biases)
        short = len(short_of(logits + biases, truth))
        if short < fewest:
            best, fewest = biases, short
        # A class may have taken faces from one that had enough before: that one is raised again.
        if not short or (biases == before).all():
            return best


def _raised(
    logits: NDArray[np.floating], truth: NDArray[np.int64], biases: NDArray[np.float32]
) -> NDArray[np.float32]:
    """`biases`, with that of one class after the other raised until it has enough of its faces."""
    biases = biases.copy()
    for emotion in range(len(biases)):
        own = truth == emotion
        while own.any() and biases[emotion] < _MOST_BIAS:
            if ((logits + biases)[own].argmax(axis=1) == emotion).mean() > LEAST_RECALL:
                break
            biases[emotion] += np.float32(0.1)
    return biases


def short_of(logits: NDArray[np.floating], truth: NDArray[np.int64]) -> dict[int, float]:
    """Return the recalls, by class, that are not above LEAST_RECALL; a class without rows has none."""
    found = logits.argmax(axis=1) == truth
    recalls = {int(emotion): float(found[truth == emotion].mean()) for emotion in np.unique(truth)}
    return {emotion: recall for emotion, recall in recalls.items() if not recall > LEAST_RECALL}


def _softmax(logits: NDArray[np.floating]) -> NDArray[np.float32]:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True), np.float32)
