"""Finding the model that MODEL_PATH means, and refusing one that is not what it should be."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import pytest

from service.engine import Engine
from service.errors import StartupError
from service.modelfile import DETECTORS, check_source, resolve_detectors, resolve_model
from service.settings import DEFAULT_MODEL
from tests.service.harness import MODEL


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_keras_path_means_its_converted_file(tmp_path: Path) -> None:
    """The ONNX file is found beside the Keras file, or where the conversion step puts it."""
    keras = tmp_path / "models" / "net.keras"
    built = tmp_path / "models" / "build" / "net.onnx"
    built.parent.mkdir(parents=True)
    built.touch()
    relative = Path("models/net.keras")
    assert resolve_model(relative) == Path("models/build/net.onnx")
    keras.with_suffix(".onnx").touch()
    assert resolve_model(relative) == Path("models/net.onnx")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("models/build/modelo_emociones.onnx", "make convert"),
        ("elsewhere/net.onnx", "MODEL_PATH"),
        ("models/net.keras", "python -m conversion models/net.keras -o models/build/net.onnx"),
        ("models/net.h5", "python -m conversion models/net.h5 -o models/build/net.onnx"),
    ],
)
def test_a_missing_model_is_told_with_how_to_make_it(path: str, hint: str) -> None:
    """The message is what to type."""
    with pytest.raises(StartupError, match=hint):
        resolve_model(Path(path))


@pytest.mark.parametrize("path", [f"{'long' * 100}.onnx", f"{'long' * 100}.keras", "circle/net.onnx"])
def test_a_model_that_cannot_be_looked_for_is_told_in_one_line(path: str) -> None:
    """As one in a folder that is closed to the service's user, which root, who may run the tests, does not meet."""
    Path("circle").symlink_to("circle")
    with pytest.raises(StartupError, match=r"\.onnx cannot be read: (File name too long|Too many levels)"):
        resolve_model(Path(path))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The served model with its manifest, free to be spoilt."""
    copy = tmp_path / MODEL.name
    shutil.copy(MODEL, copy)
    shutil.copy(f"{MODEL}.manifest.json", f"{copy}.manifest.json")
    return copy


def test_a_model_that_is_what_its_manifest_says_is_served(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No word is lost about it."""
    with caplog.at_level(logging.WARNING):
        assert Engine(copied).card.labels
    assert not caplog.records


def test_a_detector_beside_the_model_is_taken_before_the_one_that_was_built(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever puts another there means it; without one, what `make convert` built is used."""
    monkeypatch.chdir(tmp_path)
    built = tuple(DEFAULT_MODEL.with_name(name) for name in DETECTORS)
    DEFAULT_MODEL.parent.mkdir(parents=True)
    for file in built:
        file.touch()
    assert resolve_detectors(tmp_path / "model.onnx") == built
    (tmp_path / DETECTORS[1]).touch()
    assert resolve_detectors(tmp_path / "model.onnx") == (built[0], tmp_path / DETECTORS[1])


def test_a_model_that_was_changed_is_refused(copied: Path) -> None:
    """A single byte is enough; the reason is the hash."""
    model = bytearray(copied.read_bytes())
    model[-1] ^= 1
    copied.write_bytes(model)
    with pytest.raises(StartupError, match="not the file that its manifest describes"):
        Engine(copied)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": "x"}'])
def test_a_damaged_manifest_is_refused(copied: Path, content: str) -> None:
    """What cannot be checked is not served as if it had been."""
    Path(f"{copied}.manifest.json").write_text(content)
    with pytest.raises(StartupError, match="is not a manifest"):
        Engine(copied)


def test_a_manifest_that_cannot_be_read_is_not_called_damaged(copied: Path) -> None:
    """Converting the model again would not help."""
    manifest = Path(f"{copied}.manifest.json")
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(StartupError, match=r"manifest\.json cannot be read: Is a directory$"):
        Engine(copied)


def test_a_model_without_a_manifest_is_served_with_a_warning(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing says that it is wrong, and the log says that nothing was checked."""
    Path(f"{copied}.manifest.json").unlink()
    assert Engine(copied).card.labels
    assert "unchecked" in caplog.text


def test_a_keras_file_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    """MODEL_PATH naming a Keras file means that file as it is now."""
    keras = tmp_path / "net.keras"
    keras.write_bytes(b"newer")
    recorded = json.loads(Path(f"{MODEL}.manifest.json").read_text())["source_sha256"]
    with pytest.raises(StartupError, match=r"python -m conversion .*net\.keras -o"):
        check_source(keras, MODEL, recorded)
    check_source(tmp_path / "absent.keras", MODEL, recorded)
    check_source(MODEL, MODEL, "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that nobody can read, not even root")
def test_a_keras_file_that_cannot_be_read_is_told_in_one_line(tmp_path: Path) -> None:
    """As one of another user's, beside the model that was converted from it."""
    source = tmp_path / "model.keras"
    source.symlink_to("/proc/self/mem")
    with pytest.raises(StartupError, match=r"model\.keras cannot be read: Input/output error$"):
        check_source(source, tmp_path / "model.onnx", "0" * 64)
