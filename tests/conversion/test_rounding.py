"""A network that rounds to whole steps in its own graph becomes an ONNX file that computes in integers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from conversion.cli import main
from conversion.convert import Converted
from conversion.rounding import weight_steps
from conversion.tensorflow_quietly import keras
from conversion.verify import verify
from tests.conversion.keras_models import LABELS, options

INT8, UINT8, INT32, FLOAT = (
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT32,
    onnx.TensorProto.FLOAT,
)


def on_grid(random: np.random.Generator, shape: tuple[int, ...], largest: int = 63) -> Any:
    """A kernel of whole steps, with another step for each output channel."""
    whole = random.integers(-largest, largest + 1, shape)
    whole[0, 0, 0] = largest
    return (
        whole * random.uniform(0.5, 1.5, shape[-1]) * 0.6 / largest / np.sqrt(np.prod(shape[:-1]))
    ).astype(np.float32)


def rounding_network(
    *, low: float = -128, high: float = 127, zero: float = 128, largest: int = 63, mirrored: str = ""
) -> Any:
    """A residual network that rounds its activations, as `models.quantization` makes them; `mirrored`, one that gives
    the mean for a face and its mirror image, of `all` or of those that it is `unsure` of."""
    random = np.random.default_rng(4)

    def rounded(x: Any, step: float, bounds: tuple[float, float]) -> Any:
        return keras.ops.round(keras.ops.clip(x * (1 / step), *bounds)) * step

    images = keras.Input((32, 32, 1))
    x = keras.layers.Rescaling(1 / 128, offset=-zero / 128)(images)
    if mirrored:
        x = keras.layers.Concatenate(axis=0)([x, x[:, :, ::-1]])
    x = rounded(keras.layers.Conv2D(16, 3, 2, padding="same", name="stem")(x), 0.02, (0, 255))
    y = rounded(keras.layers.Conv2D(16, 3, 1, padding="same", name="first")(x), 0.015, (0, 255))
    y = rounded(keras.layers.Conv2D(16, 3, 1, padding="same", name="second")(y), 0.03, (low, high))
    x = rounded(keras.layers.Add()([x, y]), 0.025, (0, 255))
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(7, name="logits")(x)
    if mirrored == "all":
        x = keras.ops.mean(keras.ops.reshape(x, (2, -1, 7)), axis=0)
    if mirrored == "unsure":
        both = keras.ops.reshape(x, (2, -1, 7))
        sure = keras.ops.max(keras.ops.softmax(both[0]), axis=-1, keepdims=True)
        x = both[0] + (both[1] - both[0]) * keras.ops.clip((0.5 - sure) * 20, 0.0, 0.5)
    network = keras.Model(images, keras.layers.Softmax()(x))
    for name in ("stem", "first", "second"):
        layer = network.get_layer(name)
        layer.set_weights(
            [on_grid(random, layer.kernel.shape, largest), random.normal(0, 0.2, 16).astype(np.float32)]
        )
    network.get_layer("logits").set_weights([random.normal(0, 3, (16, 7)), random.normal(0, 0.3, 7)])
    return network


def consumers(model: onnx.ModelProto, tensor: str) -> list[str]:
    return sorted(node.op_type for node in model.graph.node if tensor in node.input)


@pytest.fixture
def convert_network(
    convert_here: Callable[..., Converted], tmp_path: Path
) -> Callable[..., tuple[Converted, onnx.ModelProto]]:
    """Convert a network of `rounding_network`."""

    def run(**changes: Any) -> tuple[Converted, onnx.ModelProto]:
        source = tmp_path / "rounding.keras"
        rounding_network(**changes).save(source)
        converted = convert_here(source, options(color="gray", source_labels=list(LABELS), scale=1.0))
        return converted, onnx.load_from_string(converted.shipped.model)

    return run


def operations(model: onnx.ModelProto) -> dict[str, int]:
    return {
        kind: sum(node.op_type == kind for node in model.graph.node)
        for kind in {n.op_type for n in model.graph.node}
    }


def kernels(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [item for item in model.graph.initializer if len(item.dims) == 4]


def test_every_convolution_gets_bytes_and_the_answers_stay(
    convert_network: Callable[..., tuple[Converted, onnx.ModelProto]],
) -> None:
    """Kernels are int8, biases int32, pixels go in as they come; noise and faces are answered as Keras does."""
    converted, model = convert_network()
    assert [item.data_type for item in kernels(model)] == [INT8] * 3
    counted = operations(model)
    assert not {"Round", "Clip", "Min", "Max", "Cast", "Transpose"} & counted.keys()
    assert counted["QuantizeLinear"] == 4
    biases = [item for item in model.graph.initializer if item.data_type == INT32 and item.dims == [16]]
    assert len(biases) >= 3
    assert all(np.abs(onnx.numpy_helper.to_array(item)).max() <= 64 for item in kernels(model))
    parity = converted.shipped.parity
    assert set(parity) == {"random", "faces"}
    assert all(figures.max_difference < 0.05 and figures.agreement == 1 for figures in parity.values())
    verified = verify(converted.shipped.path)
    assert verified.precision == "int8"
    assert (
        json.loads(Path(f"{converted.shipped.path}.manifest.json").read_text("utf-8"))["precision"] == "int8"
    )


@pytest.mark.parametrize("zero", [128, 127.5])
def test_a_look_at_the_mirrored_face_is_one_at_bytes(
    convert_network: Callable[..., tuple[Converted, onnx.ModelProto]], zero: float
) -> None:
    """Cast, scale and shift come behind it, and go into the first convolution as those of one look do."""
    converted, model = convert_network(mirrored="all", zero=zero)
    assert consumers(model, model.graph.input[0].name) == ["Concat", "Slice"]
    assert [item.data_type for item in kernels(model)].count(INT8) == (3 if zero == 128 else 2)
    assert ("Cast" in operations(model)) == (zero != 128)
    parity = converted.shipped.parity
    assert all(figures.max_difference < 0.05 and figures.agreement == 1 for figures in parity.values())


def test_a_second_look_of_the_unsure_shares_the_integers_of_the_first(
    convert_network: Callable[..., tuple[Converted, onnx.ModelProto]],
) -> None:
    """Pixels and kernels are bytes in the branch, too, and each kernel is there once."""
    converted, model = convert_network(mirrored="unsure")
    assert [item.data_type for item in kernels(model)] == [INT8] * 3
    (branch,) = (item.g for node in model.graph.node for item in node.attribute if item.name == "then_branch")
    assert [node.op_type for node in branch.node].count("Conv") == operations(model)["Conv"] == 3
    assert "Cast" not in {node.op_type for node in branch.node}
    parity = converted.shipped.parity
    assert all(figures.max_difference < 0.05 and figures.agreement == 1 for figures in parity.values())


def test_pixels_without_a_whole_zero_stay_floats(
    convert_network: Callable[..., tuple[Converted, onnx.ModelProto]],
) -> None:
    """127.5 is no byte: the first convolution is left in float32, the others are not."""
    converted, model = convert_network(zero=127.5)
    assert sorted(item.data_type for item in kernels(model)) == [FLOAT, INT8, INT8]
    assert converted.shipped.parity["faces"].agreement == 1


def test_a_kernel_of_other_weights_stays_in_floats(
    convert_network: Callable[..., tuple[Converted, onnx.ModelProto]],
) -> None:
    """With 100 steps its products would not fit in the 16 bits that some CPUs add them in. Nor does ONNX Runtime round
    it, as it does by itself behind a DequantizeLinear."""
    converted, model = convert_network(largest=100)
    assert [item.data_type for item in kernels(model)] == [FLOAT] * 3
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert [producers[node.input[0]] for node in model.graph.node if node.op_type == "Conv"] == ["Mul"] * 3
    assert converted.shipped.parity["faces"].agreement == 1


def test_rounding_to_other_bounds_is_computed_as_it_stands(
    convert_network: Callable[..., tuple[Converted, onnx.ModelProto]],
) -> None:
    """-100..100 steps are no byte's: that one chain stays, and the answers with it."""
    converted, model = convert_network(low=-100, high=100)
    assert operations(model)["Round"] == 1
    assert operations(model)["QuantizeLinear"] == 3
    assert converted.shipped.parity["faces"].agreement == 1


def test_a_network_in_int8_has_no_precision_to_reduce(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--precision` with such a network is refused in one line, and nothing is written."""
    source, output = tmp_path / "rounding.keras", tmp_path / "out" / "model.onnx"
    rounding_network().save(source)
    labels = "angry,disgust,fear,happy,neutral,sad,surprise"
    command = [str(source), "-o", str(output), "--color", "gray", "--source-labels", labels]
    assert main([*command, "--precision", "fp16"]) == 2
    assert "trained for INT8" in capsys.readouterr().err
    assert not output.exists()


def test_steps_are_found_only_where_all_weights_are_whole() -> None:
    """A kernel that is on a grid gives its steps; one weight between two steps, and there are none."""
    kernel = np.asarray(on_grid(np.random.default_rng(0), (3, 3, 4, 8)), np.float64).transpose(3, 2, 0, 1)
    steps = weight_steps(kernel)
    assert steps is not None
    assert kernel / steps[:, None, None, None] == pytest.approx(
        np.round(kernel / steps[:, None, None, None]), abs=1e-3
    )
    kernel[3, 1, 1, 1] += steps[3] / 2
    assert weight_steps(kernel) is None
