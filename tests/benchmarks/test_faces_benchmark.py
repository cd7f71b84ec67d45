"""The benchmark of the detector, on the photo that may be in the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_faces_are_counted_and_emotions_compared_with_labels(tmp_path: Path) -> None:
    """One photo with its label, and a file that is no photo; and the same for other margins."""
    shutil.copy(ROOT / "tests/data/astronaut.jpg", tmp_path / "photo.jpg")
    (tmp_path / "labels.csv").write_text("file,emotion\nphoto.jpg,happy\n")
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.faces", str(tmp_path), "--margins"],
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
