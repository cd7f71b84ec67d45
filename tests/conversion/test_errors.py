"""What cannot be converted is answered with one line that says what to do, and leaves no file."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conversion.cli import joined, main, thresholds_from
from conversion.errors import OptionError
from conversion.options import Options, read_sidecar
from conversion.tensorflow_quietly import keras, tf
from tests.conversion.keras_models import LABELS, rgb_functional, subclassed

ROOT = Path(__file__).parents[2]
SEVEN = ",".join(LABELS)
SCALED = ["--source-labels", SEVEN, "--scale", "0.00392", "--offset", "0"]


def test_missing_file(refused: Callable[..., str], tmp_path: Path) -> None:
    """A path where nothing is."""
    assert "No such file" in refused(tmp_path / "nothing.keras")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.keras", b"", "the file is empty"),
        ("text.h5", b"not a model at all", "damaged or misnamed"),
        ("model.onnx", b"\x08\x08\x12\x07tf2onnx", "already converted"),
        ("model.tflite", b"\x1c\x00\x00\x00TFL3\x00\x00", "TensorFlow Lite"),
        ("photo.jpg", b"\xff\xd8\xff\xe0\x00\x10JFIF", "not a Keras model"),
    ],
)
def test_foreign_files(
    name: str, content: bytes, reason: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    """Files of other kinds are told apart by their contents."""
    (tmp_path / name).write_bytes(content)
    assert reason in refused(tmp_path / name)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("part", [0.1, 0.6, 0.98])
def test_truncated_files(suffix: str, part: float, refused: Callable[..., str], tmp_path: Path) -> None:
    """A download that stopped early is called truncated or damaged, wherever it stopped."""
    whole = tmp_path / f"whole{suffix}"
    rgb_functional().save(whole)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * part)])
    assert "truncated or damaged" in refused(cut, *SCALED)


def test_flipped_bits_in_the_weights(refused: Callable[..., str], tmp_path: Path) -> None:
    """A .keras file whose contents do not match its own checksums is refused."""
    whole = tmp_path / "model.keras"
    rgb_functional().save(whole)
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 0xFF
    whole.write_bytes(content)
    assert "damaged .keras file" in refused(whole, *SCALED)


def test_zeros_in_the_packed_weights(refused: Callable[..., str], tmp_path: Path) -> None:
    """A block of the disk that was lost cannot be unpacked, before there is a checksum to compare."""
    with zipfile.ZipFile(ROOT / "models/modelo_emociones.keras") as archive:
        weights = archive.getinfo("model.weights.h5").header_offset + 30 + len("model.weights.h5")
    content = bytearray((ROOT / "models/modelo_emociones.keras").read_bytes())
    content[weights : weights + 512] = bytes(512)
    (tmp_path / "damaged.keras").write_bytes(content)
    assert "truncated or damaged .keras file" in refused(tmp_path / "damaged.keras")


def test_an_encrypted_file(refused: Callable[..., str], tmp_path: Path) -> None:
    """Nobody is asked for a password."""
    with zipfile.ZipFile(tmp_path / "secret.keras", "w") as archive:
        for name in ("config.json", "model.weights.h5"):
            archive.writestr(name, "{}")
    content = bytearray((tmp_path / "secret.keras").read_bytes())
    for entry in re.finditer(rb"PK\x01\x02", content):
        content[entry.start() + 8] |= 1
    (tmp_path / "secret.keras").write_bytes(content)
    assert "is encrypted" in refused(tmp_path / "secret.keras")


def test_options_in_the_model_that_are_no_text(refused: Callable[..., str], tmp_path: Path) -> None:
    """What a model says of itself in another encoding than UTF-8."""
    rgb_functional().save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras", "a") as archive:
        archive.writestr("visionai.json", '{"conversion": {"version_tag": "caf\xe9"}}'.encode("latin-1"))
    assert "the options kept in the model are not JSON" in refused(tmp_path / "model.keras")


def test_zip_of_something_else(refused: Callable[..., str], tmp_path: Path) -> None:
    """A zip file that is no Keras model, such as a PyTorch checkpoint."""
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert "PyTorch" in refused(tmp_path / "model.keras")


def test_weights_without_a_network(refused: Callable[..., str], tmp_path: Path) -> None:
    """A file of weights alone says that the whole model is needed."""
    rgb_functional().save_weights(tmp_path / "model.weights.h5")
    assert "save the whole model" in refused(tmp_path / "model.weights.h5", *SCALED)


def test_savedmodel_without_its_variables(refused: Callable[..., str], tmp_path: Path) -> None:
    """Half a SavedModel, and a folder that is none."""
    rgb_functional().export(tmp_path / "saved", verbose=False)
    shutil.rmtree(tmp_path / "saved" / "variables")
    assert "copy the whole directory" in refused(tmp_path / "saved", *SCALED)
    assert "without saved_model.pb" in refused(tmp_path)


def test_custom_layers_that_are_missing(tmp_path: Path) -> None:
    """In a process that does not know a custom class, the class and the option for it are named."""
    module, model = subclassed(tmp_path)
    model.save(tmp_path / "model.keras")
    command = [
        sys.executable,
        "-m",
        "conversion",
        str(tmp_path / "model.keras"),
        "-o",
        str(tmp_path / "m.onnx"),
    ]
    command += [*SCALED, "--input-size", "32x40", "--color", "rgb"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr.count("\n") == 1
    assert "Subclassed" in ran.stderr
    assert "--custom FILE.py" in ran.stderr
    known = subprocess.run(
        [*command, "--custom", str(module), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (known.returncode, known.stderr) == (0, "")
    assert json.loads(known.stdout)["written"] == [str(tmp_path / "m.onnx")]


@pytest.mark.parametrize(
    ("status", "told"), [("0", "0"), ("2", "2"), ("'usage:\\n custom.py'", "usage: custom.py")]
)
def test_custom_layers_that_end_the_program(
    status: str, told: str, refused: Callable[..., str], rgb_model: Path, tmp_path: Path
) -> None:
    """A script given as --custom that exits, as one without a `__main__` guard does, fails the conversion."""
    custom = tmp_path / "custom.py"
    custom.write_text(f"import sys\nsys.exit({status})\n")
    line = refused(rgb_model, *SCALED, "--custom", custom)
    assert line == f"error: --custom {custom}: SystemExit: {told}\n"


def test_lambda_layers_are_not_run(refused: Callable[..., str], tmp_path: Path) -> None:
    """A Lambda layer, which is code inside a data file, is refused with the way round it."""
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Flatten()]
    )
    model.save(tmp_path / "model.keras")
    assert "export the model as a SavedModel" in refused(tmp_path / "model.keras", *SCALED)


def test_wrong_number_of_classes(refused: Callable[..., str], rgb_model: Path) -> None:
    """Six names for seven outputs."""
    line = refused(rgb_model, "--source-labels", "a,b,c,d,e,f", "--scale", "1", "--offset", "0")
    assert "has 7 outputs, but 6 class names" in line


def test_unknown_class_order_and_scale(refused: Callable[..., str], rgb_model: Path) -> None:
    """Neither is guessed: each is asked for by the name of its option."""
    assert "--source-labels with 7 names" in refused(rgb_model)
    assert "--scale and --offset" in refused(rgb_model, "--source-labels", SEVEN)


def test_the_wanted_order_is_not_taken_for_the_networks(refused: Callable[..., str], rgb_model: Path) -> None:
    """`--labels` alone says nothing of the order of the outputs: that is asked for."""
    line = refused(rgb_model, "--labels", SEVEN, "--scale", "1", "--offset", "0")
    assert "the class order of rgb.keras is not known: give --source-labels with 7 names" in line


def test_labels_that_contradict(refused: Callable[..., str], rgb_model: Path) -> None:
    """The wanted labels must be the source's, in whatever order."""
    line = refused(rgb_model, *SCALED, "--labels", "angry,disgust,fear,joy,neutral,sad,surprise")
    assert "different classes: happy, joy" in line


def test_open_sizes(refused: Callable[..., str], tmp_path: Path) -> None:
    """A network of any size or any colour asks for both."""
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((None, None, 3)), layers.GlobalAveragePooling2D(), layers.Dense(7, activation="softmax")]
    )
    model.save(tmp_path / "model.keras")
    assert "--input-size HEIGHTxWIDTH" in refused(tmp_path / "model.keras", *SCALED)


def test_contradicting_size_and_colour(refused: Callable[..., str], rgb_model: Path) -> None:
    """An option that says otherwise than the network is refused, not ignored."""
    assert "takes 96x96 images, not 48x48" in refused(rgb_model, *SCALED, "--input-size", "48x48")
    assert "takes 3 channel(s), which is not --color gray" in refused(rgb_model, *SCALED, "--color", "gray")


def test_networks_that_are_no_image_classifiers(refused: Callable[..., str], tmp_path: Path) -> None:
    """Vectors in, maps out, one output, two inputs: each is told."""
    layers = keras.layers
    vector = keras.Sequential([keras.Input((12,)), layers.Dense(7)])
    vector.save(tmp_path / "vector.keras")
    assert "expected [batch, height, width, channels]" in refused(tmp_path / "vector.keras", *SCALED)
    mapping = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(7, 1)])
    mapping.save(tmp_path / "mapping.keras")
    assert "one row of class scores" in refused(tmp_path / "mapping.keras", *SCALED)
    single = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(1)])
    single.save(tmp_path / "single.keras")
    assert "has 1 output" in refused(tmp_path / "single.keras", *SCALED)
    one, two = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    both = keras.Model([one, two], layers.Dense(7)(layers.Flatten()(layers.Add()([one, two]))))
    both.save(tmp_path / "both.keras")
    assert "has 2 inputs" in refused(tmp_path / "both.keras", *SCALED)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_first(channels: int, refused: Callable[..., str], tmp_path: Path) -> None:
    """What takes its channels first, and does not run on a CPU, is told how to build it, and is taken like that."""
    layers = keras.layers

    def network(kind: str, shape: tuple[int, int, int]) -> Any:
        convolution = layers.Conv2D(4, 3, data_format=kind)
        normalization = layers.BatchNormalization(axis=1 if kind == "channels_first" else -1)
        end = [layers.Flatten(data_format=kind), layers.Dense(7)]
        return keras.Sequential([keras.Input(shape), convolution, normalization, *end])

    first, last = network("channels_first", (channels, 16, 20)), network("channels_last", (16, 20, channels))
    first.save(tmp_path / "first.keras")
    line = refused(tmp_path / "first.keras", *SCALED)
    assert f"takes {channels}x16x20: its channels come first" in line
    assert 'data_format="channels_last"' in line
    last.set_weights(first.get_weights())
    last.save(tmp_path / "last.keras")
    assert main([str(tmp_path / "last.keras"), *SCALED, "-o", str(tmp_path / "last.onnx")]) == 0


@pytest.mark.parametrize("batch", [1, None])
def test_networks_that_take_one_image_at_a_time(
    batch: int | None, refused: Callable[..., str], tmp_path: Path
) -> None:
    """A SavedModel whose batch size is fixed, or that makes one row of a batch, is told before it is converted."""
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((batch, 16, 16, 3), tf.float32)])  # type: ignore[untyped-decorator]
    def serve(images: Any) -> dict[str, Any]:
        return {"scores": tf.nn.softmax(tf.reshape(images, (1, -1))[:, :7])}

    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=serve)
    assert "takes one image at a time, not a batch" in refused(tmp_path / "saved", *SCALED)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_answers_that_are_not_float32(kind: str, refused: Callable[..., str], tmp_path: Path) -> None:
    """A SavedModel that ends in another precision, as in mixed precision without care, is told what to change."""
    layers = keras.layers
    model = keras.Sequential([keras.Input((16, 16, 3)), layers.Flatten(), layers.Dense(7, dtype=kind)])
    model.export(tmp_path / "saved", verbose=False)
    assert f'answers in {kind}; give its last layer dtype="float32"' in refused(tmp_path / "saved", *SCALED)


def test_unknown_options(refused: Callable[..., str], rgb_model: Path, tmp_path: Path) -> None:
    """On the command line and in a sidecar, an unknown option is named; a near miss is suggested."""
    assert "--scael" in refused(rgb_model, "--scael", "1")
    sidecar = tmp_path / "model.toml"
    sidecar.write_text("[conversion]\nsource_label = ['a', 'b']\n", "utf-8")
    line = refused(rgb_model, "--sidecar", sidecar)
    assert "unknown option 'source_label'; did you mean 'source_labels'?" in line
    assert str(sidecar) in line


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"color": "cmyk"}, "one of gray, rgb"),
        ({"scale": "a lot"}, "a number, or one number per channel"),
        ({"scale": [1, 2]}, "three numbers"),
        ({"scale": "nan"}, "finite numbers"),
        ({"scale": 0}, "numbers other than 0"),
        ({"scale": [1, 0, 1]}, "numbers other than 0"),
        ({"offset": [0, 0, float("inf")]}, "finite numbers"),
        ({"input_size": "big"}, "HEIGHTxWIDTH"),
        ({"input_size": "4x4"}, "8 to 2048"),
        ({"opset": 9}, "from 13 to 18"),
        ({"opset": True}, "from 13 to 18"),
        ({"labels": ["happy", "happy"]}, "different names"),
        ({"labels": 7}, "a list of names"),
        ({"source_labels": ["happy", "s" * 51]}, "names of at most 50 characters"),
        ({"version_tag": ""}, "1 to 100 characters"),
        ({"activation": "relu"}, "auto, softmax, logits"),
    ],
)
def test_wrong_values(entry: dict[str, object], reason: str) -> None:
    """Each option says what it expects."""
    with pytest.raises(OptionError, match=reason):
        Options.parse(entry, "test")


def test_sidecars_in_both_languages(tmp_path: Path) -> None:
    """TOML and JSON sidecars say the same; other tables are for others."""
    (tmp_path / "a.toml").write_text(
        "[package]\nname = 'x'\n[conversion]\nscale = 1\noutput = 'o'\n", "utf-8"
    )
    (tmp_path / "a.json").write_text('{"conversion": {"scale": 1}}', "utf-8")
    assert read_sidecar(tmp_path / "a.toml") == read_sidecar(tmp_path / "a.json") == Options(scale=(1.0,))


@pytest.mark.parametrize("text", ["scale = 1", "[conversion", "[[conversion]]\nscale = 1"])
def test_unusable_sidecars(text: str, tmp_path: Path) -> None:
    """A sidecar without its table, or that is not TOML, is refused with its name."""
    (tmp_path / "a.toml").write_text(text, "utf-8")
    with pytest.raises(OptionError, match=r"sidecar .*a\.toml"):
        read_sidecar(tmp_path / "a.toml")


def test_command_line_wins_over_the_sidecar() -> None:
    """What is given nearer to the caller is used; gaps are filled from below."""
    merged = Options(color="rgb").over(Options(color="gray", opset=15))
    assert (merged.color, merged.opset, merged.scale) == ("rgb", 15, None)


def test_thresholds_by_precision() -> None:
    """A plain number is for fp32; PRECISION=N for another; anything else is refused."""
    thresholds = thresholds_from({"max_difference": ["0.001", "int8=0.25"], "agreement": ["int8=0.9"]})
    assert thresholds["fp32"].max_difference == 0.001
    assert (thresholds["int8"].max_difference, thresholds["int8"].agreement) == (0.25, 0.9)
    for wrong in ("much", "int4=0.1", "2"):
        with pytest.raises(OptionError, match="PRECISION=N"):
            thresholds_from({"max_difference": [wrong]})


@pytest.mark.parametrize("drop", ["nan", "inf", "much"])
def test_an_accuracy_drop_is_a_number(drop: str, refused: Callable[..., str], rgb_model: Path) -> None:
    """A bound that nothing could break is no bound."""
    assert "--max-accuracy-drop" in refused(rgb_model, *SCALED, "--max-accuracy-drop", drop)


@pytest.mark.parametrize("offset", ["-103.9,-116.8,-123.7", "-.5", "-1"])
def test_negative_numbers_are_no_options(offset: str, refused: Callable[..., str], tmp_path: Path) -> None:
    """An offset that begins with a minus is read as one: what is refused is only the missing model."""
    line = refused(tmp_path / "none.keras", "--scale", "1", "--offset", offset)
    assert "No such file" in line
    assert joined(["--offset", offset, "--json"]) == [f"--offset={offset}", "--json"]


@pytest.mark.parametrize("missing", ["onnx", "tensorflow", "matplotlib"])
def test_the_serving_environment_names_the_one_to_use(missing: str, rgb_model: Path, tmp_path: Path) -> None:
    """Where a tool of the conversion is not installed, one line says where it is, and nothing is written."""
    code = f"import sys; sys.modules['{missing}'] = None; from conversion.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(rgb_model), "-o", "out/m.onnx", *SCALED, "--report", "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith(f"error: the conversion needs {missing}: run it in .venv-build")
    assert ran.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place(rgb_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the output cannot be written, the path is in the error."""
    place = tmp_path / "place"
    place.write_text("a file where a folder should be", "utf-8")
    assert main([str(rgb_model), *SCALED, "-o", str(place / "m.onnx")]) == 1
    assert capsys.readouterr().err == f"error: {place / 'm.onnx'}: cannot write: {place} is not a folder\n"


def test_ctrl_c_is_one_line(rgb_model: Path, refused: Callable[..., str], tmp_path: Path) -> None:
    """The signal arrives while the layers are imported: status 130, as shells have it, and no traceback."""
    custom = tmp_path / "custom.py"
    custom.write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    assert refused(rgb_model, *SCALED, "--custom", custom, status=130) == "error: interrupted\n"
