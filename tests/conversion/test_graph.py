"""What the ONNX graph is made of, and that broken graphs are found."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from conversion.checks import check_batch_normalization, check_graph, leftover_transposes
from conversion.cli import main
from conversion.convert import Converted, build, specify
from conversion.divergence import first_divergence
from conversion.errors import GraphError
from conversion.folding import fold
from conversion.graph import freeze
from conversion.images import portrait_variants, random_images
from conversion.options import Options
from conversion.sessions import OPTIMISATION_LEVELS, open_session, run
from conversion.sources import load
from conversion.tensorflow_quietly import keras, tf
from tests.conversion.keras_models import LABELS, options, randomise


def graph_of(converted: Converted) -> onnx.ModelProto:
    return onnx.load_from_string(converted.shipped.model)


def test_ends_are_named_and_only_the_batch_is_open(converted_rgb: Converted) -> None:
    """The input is uint8 images, the output float32 probabilities, and one named dimension is open."""
    session = open_session(converted_rgb.shipped.model)
    (images,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 96, 96, 3])
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert probabilities.shape == ["batch", 7]


def test_metadata_describes_the_model(converted_rgb: Converted) -> None:
    """A service finds labels, input, preprocessing, version, source and bounds in the file, keys sorted."""
    entries = [(item.key, item.value) for item in graph_of(converted_rgb).metadata_props]
    assert entries == sorted(entries)
    stored = dict(entries)
    assert json.loads(stored["visionai.labels"]) == list(LABELS)
    assert json.loads(stored["visionai.input"]) == {"height": 96, "width": 96, "color": "rgb"}
    assert json.loads(stored["visionai.preprocessing"])["offset"] == 0.0
    assert stored["visionai.version_tag"] == f"rgb-{converted_rgb.source.sha256[:8]}"
    assert stored["visionai.source_sha256"] == converted_rgb.source.sha256
    assert stored["visionai.parameters"] == str(converted_rgb.source.parameters)
    assert (stored["visionai.schema"], stored["visionai.kind"], stored["visionai.precision"]) == (
        "1",
        "classifier",
        "fp32",
    )
    assert json.loads(stored["visionai.parity"])["max_difference"] == 1e-4


def test_normalisations_are_folded_and_no_transpose_is_left(
    converted_rgb: Converted, gray_model: Path, convert_here: Callable[..., Converted]
) -> None:
    """Batch norms behind convolutions, depthwise ones and dense layers vanish; only the entry is transposed."""
    rgb = converted_rgb.shipped.graph
    assert (rgb.operations["Transpose"], rgb.transposes) == (1, ())
    assert rgb.operations["Mul"] == 1  # the scale of the pixels
    gray = convert_here(gray_model, options()).shipped.graph
    assert "Transpose" not in gray.operations
    assert gray.operations["Mul"] == 1


@pytest.mark.parametrize("opset", [13, 15, 18])
def test_the_chosen_opset_is_written(
    opset: int, rgb_model: Path, convert_here: Callable[..., Converted]
) -> None:
    """The graph imports the opset that was asked for, and no other domain."""
    converted = convert_here(rgb_model, options(opset=opset))
    assert [(item.domain, item.version) for item in graph_of(converted).opset_import] == [("", opset)]
    assert converted.shipped.metadata["opset"] == str(opset)


def test_every_optimisation_level_gives_the_same_answers(converted_rgb: Converted) -> None:
    """ONNX Runtime's levels, from none to all, agree to rounding, for a batch and for single images."""
    faces = portrait_variants((96, 96, 3), 6)
    answers = [run(open_session(converted_rgb.shipped.model, level), faces) for level in OPTIMISATION_LEVELS]
    assert len(answers) == 5
    assert max(float(np.abs(answer - answers[0]).max()) for answer in answers) < 1e-5
    assert converted_rgb.shipped.graph.level_difference < 1e-5


def _affine_tail(*nodes: Any, **constants: Any) -> onnx.ModelProto:
    """A convolution of an image, then `nodes`; the last of them makes `out`."""
    values = {"weights": np.ones((4, 3, 3, 3)), **constants}
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["image", "weights"], ["convolved"]), *nodes],
        "graph",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in values.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    return onnx.shape_inference.infer_shapes(model)


def _answer(model: onnx.ModelProto) -> Any:
    image = np.random.RandomState(3).normal(size=(2, 3, 8, 8)).astype(np.float32)
    return open_session(model.SerializeToString()).run(["out"], {"image": image})[0]


def test_a_batch_normalization_node_is_folded() -> None:
    """The fused operation that Keras 2 wrote goes into the convolution, bias included."""
    make = onnx.helper.make_node
    random = np.random.RandomState(1)
    model = _affine_tail(
        make("BatchNormalization", ["convolved", "g", "b", "m", "v"], ["normal"], epsilon=1e-3),
        make("Relu", ["normal"], ["out"]),
        **{name: random.uniform(0.5, 1.5, 4) for name in "gbmv"},
    )
    before = _answer(model)
    with pytest.raises(GraphError, match="batch normalization was not folded"):
        check_batch_normalization(model)
    fold(model)
    check_batch_normalization(model)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu"]
    assert np.abs(_answer(model) - before).max() < 1e-4


def test_a_scale_that_is_not_per_channel_stays() -> None:
    """A constant that differs from pixel to pixel cannot go into the weights, and is left as it is."""
    make = onnx.helper.make_node
    model = _affine_tail(make("Mul", ["convolved", "mask"], ["out"]), mask=np.arange(36).reshape(6, 6))
    before = _answer(model)
    fold(model)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Mul"]
    assert np.array_equal(_answer(model), before)


@pytest.mark.parametrize("colors", [1, 3])
def test_pixels_are_scaled_behind_the_change_of_layout(colors: int, tmp_path: Path) -> None:
    """Images are laid out channels-first before a scale and a shift per channel touch them: the order that is
    fast; and the answers are those of TensorFlow.
    """
    network = randomise(
        keras.Sequential(
            [
                keras.Input((8, 8, colors)),
                keras.layers.Conv2D(4, 3, activation="relu"),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(7, activation="softmax"),
            ]
        )
    )
    network.save(tmp_path / "network.keras")
    scale, offset = (0.01, 0.02, 0.03)[:colors], (-1.0, -0.5, 0.5)[:colors]
    how = options(scale=list(scale), offset=list(offset), source_labels=list(LABELS))
    source = load(tmp_path / "network.keras", how)
    specification = specify(source, how)
    model, _ = build(freeze(source, specification), specification)
    operations = [node.op_type for node in model.graph.node]
    assert operations[:5] == ["Cast", "Reshape" if colors == 1 else "Transpose", "Mul", "Add", "Conv"]
    images = np.random.RandomState(5).randint(0, 256, (3, 8, 8, colors), np.uint8)
    answers = run(open_session(model.SerializeToString()), images)
    expected = network(images * np.array(scale, np.float32) + np.array(offset, np.float32)).numpy()
    assert np.abs(answers - expected).max() < 1e-5


def test_a_scale_with_axes_of_its_own_keeps_its_place() -> None:
    """A constant of shape [1, 1, 1, 1] behind a change to two axes would give it four."""
    make = onnx.helper.make_node
    model = _affine_tail(
        make("Relu", ["convolved"], ["relu"]),
        make("Mul", ["relu", "half"], ["scaled"]),
        make("Reshape", ["scaled", "shape"], ["flat"]),
        make("Softmax", ["flat"], ["out"]),
        half=np.full((1, 1, 1, 1), 0.5),
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, -1]), "shape"))
    before = _answer(model)
    fold(model)
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Mul", "Reshape", "Softmax"]
    assert np.array_equal(_answer(model), before)


def test_a_scaled_tensor_that_is_used_twice_keeps_its_place() -> None:
    """Where something else reads the scaled pixels too, they are not laid out first."""
    make = onnx.helper.make_node
    model = _affine_tail(
        make("Mul", ["convolved", "mask"], ["scaled"]),
        make("Transpose", ["scaled"], ["turned"], perm=[0, 3, 1, 2]),
        make("Relu", ["scaled"], ["relu"]),
        make("ReduceMax", ["turned"], ["most"], keepdims=0),
        make("Add", ["relu", "most"], ["out"]),
        mask=np.arange(6),
    )
    before = _answer(model)
    fold(model)
    assert [node.op_type for node in model.graph.node][:3] == ["Conv", "Mul", "Transpose"]
    assert np.array_equal(_answer(model), before)


def test_a_tensor_with_two_users_is_not_folded_away() -> None:
    """A convolution whose output is used as it is and scaled keeps both."""
    make = onnx.helper.make_node
    model = _affine_tail(
        make("Mul", ["convolved", "two"], ["double"]), make("Max", ["convolved", "double"], ["out"]), two=2.0
    )
    before = _answer(model)
    fold(model)
    assert np.array_equal(_answer(model), before)
    check_batch_normalization(model)


def test_a_transpose_that_turns_all_axes_round_stays() -> None:
    """It says no order of theirs."""
    make = onnx.helper.make_node
    model = _affine_tail(make("Transpose", ["convolved"], ["turned"]), make("Transpose", ["turned"], ["out"]))
    before = _answer(model)
    fold(model)
    assert np.array_equal(_answer(model), before)


def test_transposes_between_convolutions_are_reported() -> None:
    """A transpose pair that a converter left between two convolutions is named."""
    make = onnx.helper.make_node
    model = _affine_tail(
        make("Transpose", ["convolved"], ["last"], perm=[0, 2, 3, 1]),
        make("Relu", ["last"], ["relu"]),
        make("Transpose", ["relu"], ["first"], perm=[0, 3, 1, 2]),
        make("Conv", ["first", "more"], ["out"]),
        more=np.ones((4, 4, 3, 3)),
    )
    assert leftover_transposes(model) == ("last", "first")


def test_an_invalid_graph_is_refused(converted_rgb: Converted) -> None:
    """onnx.checker's findings come out as one line."""
    model = graph_of(converted_rgb)
    model.graph.node[2].input[0] = "nowhere"
    with pytest.raises(GraphError, match=r"onnx\.checker"):
        check_graph(model, portrait_variants((96, 96, 3), 2), 1e-5)


def test_divergence_names_the_first_node_that_differs(rgb_model: Path) -> None:
    """When one weight is wrong, the report names the first node that shows it and the last that agreed."""
    source = load(rgb_model, options())
    specification = specify(source, options())
    frozen = freeze(source, specification)
    model, names = build(frozen, specification)
    faces = portrait_variants((96, 96, 3), 2)
    assert first_divergence(frozen, model, names, faces) is None
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    broken = convolutions[-1]
    weights = next(item for item in model.graph.initializer if item.name == broken.input[1])
    value = np.array(onnx.numpy_helper.to_array(weights))
    value[0] *= -3
    weights.CopyFrom(onnx.numpy_helper.from_array(value, weights.name))
    divergence = first_divergence(frozen, model, names, faces)
    assert divergence is not None
    order = [node.name for node in model.graph.node]
    assert order.index(divergence.node) in (order.index(broken.name), order.index(broken.name) + 1)
    assert divergence.last_agreeing in broken.input
    assert "everything up to" in str(divergence)


def test_layers_that_tensorflow_wraps_or_onnx_lacks_convert(
    tmp_path: Path, convert_here: Callable[..., Converted]
) -> None:
    """Grouped convolutions, exact GELU and hard swish convert, and leave no transposes between convolutions."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(8, 3, use_bias=False),
            layers.Activation("hard_swish"),
            layers.Conv2D(8, 3, groups=4),
            layers.BatchNormalization(),
            layers.Activation(lambda x: keras.activations.gelu(x, approximate=False)),
            layers.Conv2D(8, 1, activation="swish"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(7, activation="softmax"),
        ]
    )
    randomise(model).export(tmp_path / "saved", verbose=False)
    graph = convert_here(tmp_path / "saved", options()).shipped.graph
    assert graph.transposes == ()
    assert graph.operations["Transpose"] == 1
    assert graph.operations["Conv"] == 3


def test_a_normalization_behind_a_convolution_in_three_dimensions_is_folded(
    tmp_path: Path, convert_here: Callable[..., Converted]
) -> None:
    """It goes into the weights as behind any other."""
    layers = keras.layers
    entry = [keras.Input((8, 8, 3)), layers.Reshape((8, 8, 3, 1)), layers.Conv3D(4, 3, padding="same")]
    rest = [layers.BatchNormalization(), layers.Flatten(), layers.Dense(7, activation="softmax")]
    model = randomise(keras.Sequential([*entry, *rest]))
    model.save(tmp_path / "model.keras")
    converted = convert_here(tmp_path / "model.keras", options(source_labels=list(LABELS)))
    assert converted.shipped.graph.operations["Mul"] == 1  # the scale of the pixels
    noise = random_images(4, (8, 8, 3))
    want = np.asarray(model(noise / np.float32(255), training=False))
    assert np.abs(run(open_session(converted.shipped.model), noise) - want).max() < 1e-5


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "SimpleRNN"])
def test_a_recurrent_layer_converts_unrolled(
    layer: str, tmp_path: Path, convert_here: Callable[..., Converted]
) -> None:
    """As a loop it is refused with the way out, and with that it is converted."""

    def network(*, unroll: bool) -> Any:
        recurrent = getattr(keras.layers, layer)(4, unroll=unroll)
        shaped = [keras.Input((8, 8, 1)), keras.layers.Reshape((8, 8))]
        return randomise(keras.Sequential([*shaped, recurrent, keras.layers.Dense(7)]))

    looped, unrolled = network(unroll=False), network(unroll=True)
    looped.save(tmp_path / "looped.keras")
    how = options(activation="logits", source_labels=list(LABELS))
    with pytest.raises(GraphError, match=rf"holds loops or branches;.*\b{layer}\b.* unroll=True: build"):
        convert_here(tmp_path / "looped.keras", how)
    unrolled.set_weights(looped.get_weights())
    unrolled.save(tmp_path / "unrolled.keras")
    converted = convert_here(tmp_path / "unrolled.keras", how)
    noise = random_images(4, (8, 8, 1))
    want = keras.ops.softmax(looped(noise / np.float32(255), training=False))
    assert np.abs(run(open_session(converted.shipped.model), noise) - np.asarray(want)).max() < 1e-5


def test_augmentations_that_draw_at_inference_convert(
    tmp_path: Path, convert_here: Callable[..., Converted]
) -> None:
    """Layers of Keras that draw numbers even where they use none leave nothing in the graph, nested or not."""
    layers = keras.layers
    colours = [layers.RandomColorDegeneration(0.2), layers.RandomGrayscale(), layers.RandomSaturation(0.2)]
    others = [layers.RandomPosterization(4), layers.MixUp(0.2)]
    nested = keras.Sequential([keras.Input((16, 16, 3)), *colours, *others])
    images = keras.Input((16, 16, 3))
    pixels = layers.RandomSharpness(0.2)(nested(layers.RandomHue(0.2)(images)))
    scores = layers.Dense(7)(layers.Flatten()(layers.Conv2D(4, 3)(layers.Rescaling(1 / 255)(pixels))))
    model = randomise(keras.Model(images, scores))
    model.save(tmp_path / "model.keras")
    how = Options.parse({"source_labels": list(LABELS), "activation": "logits"}, "test")
    converted = convert_here(tmp_path / "model.keras", how)
    noise = random_images(8, (16, 16, 3))
    want = keras.ops.softmax(model(noise.astype(np.float32), training=False))
    assert np.abs(run(open_session(converted.shipped.model), noise) - np.asarray(want)).max() < 1e-5


@keras.saving.register_keras_serializable(package="tests")
class AlwaysNoisy(keras.layers.Layer):  # type: ignore[misc]
    """A layer of a user's that adds noise at inference, too."""

    def build(self, _shape: Any) -> None:
        """Make the seed, which every draw changes."""
        self.seed = keras.random.SeedGenerator(1)

    def call(self, inputs: Any) -> Any:
        """Draw."""
        return inputs + keras.random.normal((16, 16, 3), seed=self.seed)


def test_a_layer_that_draws_at_inference_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """No two answers of such a network are alike: it is refused in one line, by the layer's name."""
    layers = [AlwaysNoisy(name="grain"), keras.layers.Flatten(), keras.layers.Dense(7)]
    keras.Sequential([keras.Input((16, 16, 3)), *layers]).save(tmp_path / "model.keras")
    arguments = ["--source-labels", ",".join(LABELS), "--scale", "1", "--activation", "logits"]
    capfd.readouterr()
    assert main([str(tmp_path / "model.keras"), *arguments, "-o", str(tmp_path / "model.onnx")]) == 3
    error = capfd.readouterr().err
    assert re.fullmatch(r"error: the network changes as it answers, or draws numbers: .*grain.*\n", error)


def test_an_operation_without_onnx_form_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A network with an operation that ONNX lacks is refused in one line that names the operation."""
    model = randomise(
        keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Flatten(), keras.layers.Dense(7)])
    )
    signature = tf.function(
        lambda images: model(tf.math.bessel_i0e(images), training=False),
        input_signature=[tf.TensorSpec((None, 32, 32, 1), tf.float32, "images")],
        autograph=False,
    )
    module = tf.Module()
    module.model = model
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=signature)
    capfd.readouterr()
    arguments = ["--source-labels", ",".join(LABELS), "--scale", "1", "--offset", "0"]
    assert main([str(tmp_path / "saved"), *arguments, "-o", str(tmp_path / "model.onnx")]) == 3
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "error: no ONNX form for: BesselI0e; replace these layers\n"
    assert not (tmp_path / "model.onnx").exists()
