"""Small Keras models built and converted once a session, and faces to compare them on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest

from conversion.cli import main
from conversion.convert import Converted, Request, convert
from conversion.images import portrait_variants
from conversion.options import Options
from tests.conversion.keras_models import LABELS, gray_sequential, options, rgb_functional

# What TensorFlow and Keras do to NumPy inside their own code, which is not ours to mend.
_THEIR_WARNINGS = ("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let TensorFlow's own warnings pass in this folder; all others stay errors."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for warning in _THEIR_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))


@pytest.fixture(scope="session")
def gray_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved gray Sequential .keras model."""
    path: Path = tmp_path_factory.mktemp("gray") / "gray.keras"
    gray_sequential().save(path)
    return path


@pytest.fixture(scope="session")
def rgb_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved RGB Functional .keras model that ends in logits."""
    path: Path = tmp_path_factory.mktemp("rgb") / "rgb.keras"
    rgb_functional().save(path)
    return path


@pytest.fixture(scope="session")
def converted_rgb(rgb_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """The RGB model, converted."""
    return convert(Request(rgb_model, tmp_path_factory.mktemp("converted") / "rgb.onnx", options()))


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Public-domain faces as image files, in one subfolder per label: 14 for each of the 7 labels."""
    folder = tmp_path_factory.mktemp("faces")
    for index, face in enumerate(portrait_variants((96, 96, 3), 98)):
        label = folder / LABELS[index % 7]
        label.mkdir(exist_ok=True)
        cv2.imwrite(str(label / f"{index:03}.png"), face[:, :, ::-1])
    return folder


@pytest.fixture
def convert_here(tmp_path: Path) -> Callable[..., Converted]:
    """Convert a model into a folder of this test."""

    def run(source: Path, chosen: Options, **request: Any) -> Converted:
        return convert(Request(source, tmp_path / "out" / "model.onnx", chosen, **request))

    return run


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command line, demand a failure in one line and no output file, and return the line."""

    def run(*arguments: str | Path, status: int = 2) -> str:
        output = tmp_path / "refused" / "model.onnx"
        assert main([*map(str, arguments), "-o", str(output)]) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert not output.parent.exists() or not list(output.parent.iterdir())
        return captured.err

    return run
