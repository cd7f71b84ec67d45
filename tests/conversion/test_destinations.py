"""What a conversion reads is never written to, and all that it writes appears together or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from conversion.cli import main
from conversion.destinations import check_destinations
from conversion.images import PORTRAIT, portrait_variants
from tests.conversion.keras_models import LABELS, rgb_functional
from tests.models.commands import files_of_at_most

SCALED = ["--source-labels", ",".join(LABELS), "--scale", "0.00392", "--offset", "0"]


def saved_as(kind: str, tmp_path: Path, rgb_model: Path) -> Path:
    """The RGB model of this test's own: a file, or a SavedModel."""
    if kind == "file":
        return Path(shutil.copy(rgb_model, tmp_path / "model.keras"))
    rgb_functional().export(tmp_path / "saved", verbose=False)
    return tmp_path / "saved"


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("kind", "arguments", "status", "reason"),
    [
        ("file", ["-o", "model.keras"], 2, "model.keras: is read by this conversion"),
        ("file", ["-o", "link.onnx"], 2, "link.onnx: is read by"),
        ("file", ["-o", "new/../model.keras"], 2, "is read by"),
        (
            "file",
            ["-o", "m.onnx", "--sidecar", "m.fp16.onnx", "--precision", "fp16"],
            2,
            "m.fp16.onnx: is read by",
        ),
        (
            "file",
            ["-o", "m.onnx", "--sidecar", "m.onnx.manifest.json"],
            2,
            "m.onnx.manifest.json: is read by",
        ),
        ("file", ["-o", "faces.npz", "--images", "faces.npz:train"], 2, "faces.npz: is read by"),
        ("file", ["-o", "faces.npz", "--evaluation", "faces.npz"], 2, "faces.npz: is read by"),
        ("folder", ["-o", "saved"], 2, "saved: is read by"),
        ("folder", ["-o", "saved/assets/m.onnx"], 2, "lies inside saved, which this conversion reads"),
        ("folder", ["-o", "m.onnx", "--report", "saved"], 2, "lies inside saved,"),
        ("file", ["-o", "m.onnx", "--images", "faces", "--report", "faces"], 2, "lies inside faces,"),
        ("file", ["-o", "faces/happy/m.onnx", "--evaluation", "faces"], 2, "lies inside faces,"),
        ("file", ["-o", "m.onnx", "--images", "faces", "--triton", "faces/new"], 2, "lies inside faces,"),
        ("file", ["-o", "faces/link.onnx", "--images", "faces"], 2, "faces/link.onnx: lies inside faces,"),
        ("file", ["-o", "circle.onnx", "--report", "faces.npz"], 1, "faces.npz is not a folder"),
        (
            "file",
            ["-o", "r/report.md", "--report", "r"],
            2,
            "r/report.md: two results would be written there",
        ),
        ("file", ["-o", "r/parity.png", "--report", "new/../r"], 2, "r/parity.png: two results"),
        ("file", ["-o", "r/confusion-fp32.png", "--report", "r"], 2, "fp32.png: two results"),
        ("file", ["-o", "t/model/1/model.onnx", "--triton", "t"], 2, "model.onnx: two results"),
        ("file", ["-o", "t/labels/labels.txt", "--triton", "t"], 2, "labels.txt: two results"),
        ("file", ["-o", "."], 2, "name the file to write"),
        ("file", ["-o", "new"], 1, "new: cannot write: it is a folder"),
        ("file", ["-o", "m.onnx", "--report", "faces.npz"], 1, "faces.npz is not a folder"),
        ("file", ["-o", "m.onnx", "--triton", "faces.npz"], 1, "faces.npz is not a folder"),
        ("file", ["-o", "old.onnx"], 1, "old.onnx.manifest.json: cannot write: it is a folder"),
        ("file", ["-o", "m.onnx", "--report", "report"], 1, "parity.png: cannot write: it is a folder"),
    ],
)
def test_a_place_that_is_taken(
    kind: str,
    arguments: list[str],
    status: int,
    reason: str,
    rgb_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What would overwrite what it reads, or cannot be written in full, changes no file at all."""
    monkeypatch.chdir(tmp_path)
    source = saved_as(kind, tmp_path, rgb_model)
    (tmp_path / "link.onnx").symlink_to("model.keras")
    (tmp_path / "circle.onnx").symlink_to("circle.onnx")
    for folder in ("new", "old.onnx.manifest.json", "report/parity.png", "faces/happy"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "old.onnx").write_bytes(b"an older model")
    shutil.copy(PORTRAIT, tmp_path / "faces" / "happy")
    (tmp_path / "faces" / "link.onnx").symlink_to(tmp_path / "old.onnx")
    np.savez(tmp_path / "faces.npz", x=portrait_variants((96, 96, 3), 2))
    (tmp_path / "m.fp16.onnx").write_text("[conversion]\nopset = 17\n")
    (tmp_path / "m.onnx.manifest.json").write_text('{"conversion": {}}')
    before = contents(tmp_path)
    assert main([source.name, *SCALED, *arguments]) == status
    assert reason in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_of_a_link_only_the_place_counts(tmp_path: Path) -> None:
    """It is replaced: that it points to another result, or into a folder that is read, is in nobody's way."""
    (tmp_path / "faces").mkdir()
    (tmp_path / "latest.onnx").symlink_to("m.onnx")
    (tmp_path / "into.onnx").symlink_to("faces/m.onnx")
    files = [tmp_path / name for name in ("m.onnx", "latest.onnx", "into.onnx")]
    check_destinations(files, tmp_path / "model.keras", [tmp_path / "faces"])


def test_a_report_that_finds_no_room_leaves_the_old_model(rgb_model: Path, tmp_path: Path) -> None:
    """The model, which would have fitted, is not put in its place without it."""
    output = tmp_path / "m.onnx"
    output.write_bytes(b"an older model")
    (tmp_path / "report").mkdir()
    before = contents(tmp_path)
    with files_of_at_most(12_000):
        assert main([str(rgb_model), *SCALED, "-o", str(output), "--report", str(tmp_path / "report")]) == 1
    assert contents(tmp_path) == before
