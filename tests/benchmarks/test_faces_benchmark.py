"""The benchmark of the detector, on the photo that may be in the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def measure(folder: Path) -> subprocess.CompletedProcess[str]:
    """The benchmark of a folder, which it may refuse."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "faces", str(folder)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "500"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_faces_are_counted_and_emotions_compared_with_labels(tmp_path: Path) -> None:
    """One photo with its label, a file that is no photo, and a folder; and the same for other margins."""
    (tmp_path / "folder").mkdir()
    shutil.copy(ROOT / "tests/data/astronaut.jpg", tmp_path / "photo.jpg")
    # With the mark that spreadsheets put before a text.
    (tmp_path / "labels.csv").write_text("file,emotion\nphoto.jpg,happy\n", "utf-8-sig")
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", "faces", str(tmp_path), "--margins"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "photo.jpg" in ended.stdout
    assert "labels.csv" not in ended.stdout
    assert "emotion right: 1 of 1" in ended.stdout
    # Of the crops that are compared the served one is right too.
    served = next(line for line in ended.stdout.splitlines() if line.startswith("│ 0.05"))
    assert served.replace("│", " ").split()[3] == "1"


def test_a_folder_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    """Missing, or a file: exit code 2 and its name, before anything is loaded."""
    (tmp_path / "photo.jpg").write_bytes(b"")
    for name in ("missing", "photo.jpg"):
        ended = measure(tmp_path / name)
        assert ended.returncode == 2
        assert str(tmp_path / name) in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_folder_without_photos_is_a_usage_error(tmp_path: Path) -> None:
    """What is in folders within it does not count; no empty table is printed."""
    (tmp_path / "folder").mkdir()
    shutil.copy(ROOT / "tests/data/astronaut.jpg", tmp_path / "folder/photo.jpg")
    (tmp_path / "notes.txt").write_text("no photo")
    ended = measure(tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "there is no photo in it" in ended.stderr


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            "file;emotion\nphoto.jpg;happy\n",
            "labels.csv: its first line has to name the columns file and emotion",
        ),
        ("", "labels.csv: its first line has to name the columns file and emotion"),
        ("file,emotion\nphoto.jpg,happy\ngone.jpg,sad\n", "labels.csv: gone.jpg is not in the folder"),
        (
            "file,emotion\nfolder/photo.jpg,happy\n",
            "labels.csv: folder/photo.jpg is no name of a file in the folder itself",
        ),
        ("file,emotion\nphoto.jpg,Happy\n", "labels.csv: photo.jpg is 'Happy'; the network knows angry, "),
        ("file,emotion\nphoto.jpg\n", "labels.csv: photo.jpg is None; the network knows angry, "),
        ("file,emotion\nnotes.txt,happy\n", "notes.txt has a label, but: "),
    ],
)
def test_labels_that_would_be_counted_as_wrong_answers_are_refused(
    labels: str, message: str, tmp_path: Path
) -> None:
    """One that names no photo, no emotion of the network's, or is no such table: no share is told, and why."""
    shutil.copy(ROOT / "tests/data/astronaut.jpg", tmp_path / "photo.jpg")
    (tmp_path / "folder").mkdir()
    shutil.copy(ROOT / "tests/data/astronaut.jpg", tmp_path / "folder/photo.jpg")
    (tmp_path / "notes.txt").write_text("no photo")
    (tmp_path / "labels.csv").write_text(labels)
    ended = measure(tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
