"""Files that are replaced while the service runs: what tells that one was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from service.security.files import WatchedFiles


def touch(path: Path) -> None:
    """Another time."""
    before = path.stat().st_mtime_ns
    os.utime(path, ns=(before, before + 1_000_000_000))


def lengthen(path: Path) -> None:
    """Another size."""
    before = path.stat().st_mtime_ns
    path.write_text(path.read_text() + "more")
    os.utime(path, ns=(before, before))


def replace(path: Path) -> None:
    """Another file."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    other.replace(path)


@pytest.mark.parametrize("change", [touch, lengthen, replace])
def test_a_file_is_read_again_whatever_of_it_has_changed(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Its time, its size or which file it is, each by itself; and once for each change."""
    path = tmp_path / "keys"
    path.write_text("first")
    watched, read = WatchedFiles("keys", [path]), list[str]()

    def refresh() -> bool:
        return watched.refresh(lambda: read.append(path.read_text()))

    before = path.stat()
    assert not refresh()
    change(path)
    now = path.stat()
    kept = [getattr(now, each) == getattr(before, each) for each in ("st_mtime_ns", "st_size", "st_ino")]
    assert kept.count(False) == 1
    assert refresh()
    assert not refresh()
    assert read == [path.read_text()]
