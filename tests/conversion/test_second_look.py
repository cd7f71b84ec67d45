"""A second look that only counts where the first is unsure is a branch that the sure images of a batch do not take."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from conversion.convert import Converted
from conversion.onnxfile import INPUT, OUTPUT
from conversion.tensorflow_quietly import keras
from conversion.verify import verify
from models.architecture import VARIANTS, build, with_mirrored_look, with_temperature
from tests.conversion.keras_models import LABELS, options

# Four by four squares of other brightness in each: of noise a network that is not trained says the same.
FACES = np.kron(
    np.random.default_rng(1).integers(0, 256, (40, 4, 4, 1), dtype=np.uint8),
    np.ones((1, 12, 12, 1), np.uint8),
)


@pytest.fixture
def convert_unsure(
    convert_here: Callable[..., Converted], tmp_path: Path
) -> Callable[..., tuple[Converted, Any]]:
    """Convert a network that looks twice at half of FACES; return the network too."""

    def run(**request: Any) -> tuple[Converted, Any]:
        keras.utils.set_random_seed(1)
        body = build(VARIANTS["tiny"], "tiny")
        # What a network says before any training is nearly the same for all faces.
        body.get_layer("logits").set_weights([np.eye(96, 7, dtype=np.float32), np.zeros(7, np.float32)])
        said = keras.ops.softmax(body(FACES.astype(np.float32)))
        bound = float(np.median(np.asarray(said).max(axis=1)))
        network = with_temperature(with_mirrored_look(body, bound), 1.0)
        source = tmp_path / "unsure.keras"
        network.save(source)
        chosen = options(color="gray", source_labels=list(LABELS), scale=1.0)
        return convert_here(source, chosen, **request), network

    return run


def convolutions_run(model: bytes, faces: np.ndarray, folder: Path) -> int:
    """How many convolutions ONNX Runtime computes for a batch of faces."""
    settings = ort.SessionOptions()
    settings.enable_profiling = True
    settings.profile_file_prefix = str(folder / "profile")
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    session.run([OUTPUT], {INPUT: faces})
    events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return sum(
        event["name"].endswith("_kernel_time") and "Conv" in event["args"]["op_name"]
        for event in events
        if event["cat"] == "Node"
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_sure_faces_are_looked_at_once(
    convert_unsure: Callable[..., tuple[Converted, Any]], tmp_path: Path
) -> None:
    """All get the source's answers; a batch of sure ones takes half of the convolutions of a mixed one, and each face
    gets the same answer in whatever batch."""
    converted, network = convert_unsure()
    model = converted.shipped.model
    expected = np.asarray(network(FACES.astype(np.float32)))
    assert verify(converted.shipped.path).precision == "fp32"
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    together = session.run([OUTPUT], {INPUT: FACES})[0]
    assert together == pytest.approx(expected, abs=1e-4)
    alone = np.concatenate([session.run([OUTPUT], {INPUT: face[None]})[0] for face in FACES])
    assert alone == pytest.approx(together, abs=1e-5)
    # A face and its mirror image get one answer only where both looks count alike.
    mirrored = session.run([OUTPUT], {INPUT: FACES[:, :, ::-1]})[0]
    unsure = np.abs(mirrored - together).max(axis=1) < 1e-5
    counts = [convolutions_run(model, face[None], tmp_path) for face in FACES]
    once = min(counts)
    assert 5 <= sum(count == once for count in counts) <= 35
    assert set(counts) == {once, 2 * once}
    assert all(count == 2 * once for count in np.array(counts)[unsure])
    assert unsure.any()
    assert convolutions_run(model, FACES, tmp_path) == 2 * once
    sure = FACES[np.array(counts) == once]
    assert convolutions_run(model, sure, tmp_path) == once


def test_both_looks_share_their_weights(convert_unsure: Callable[..., tuple[Converted, Any]]) -> None:
    """The file has each kernel once, and the graph is made of the same bytes each time."""
    converted, network = convert_unsure()
    model = onnx.load_from_string(converted.shipped.model)
    kernels = [item for item in model.graph.initializer if len(item.dims) == 4]
    layers = [layer for layer in network.get_layer("look").layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(kernels) == len(layers)
    again, _ = convert_unsure()
    # Keras writes the time into its file, whose hash is in the metadata.
    assert serialise_graph(again) == serialise_graph(converted)


def serialise_graph(converted: Converted) -> bytes:
    graph = onnx.load_from_string(converted.shipped.model).graph
    return bytes(graph.SerializeToString(deterministic=True))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_half_precision_keeps_the_branch(convert_unsure: Callable[..., tuple[Converted, Any]]) -> None:
    """The branch is put into each precision by itself."""
    converted, _ = convert_unsure(precisions=("fp16",))
    half = converted.variants[1]
    assert not half.refusals
    assert "If" in {node.op_type for node in onnx.load_from_string(half.model).graph.node}
