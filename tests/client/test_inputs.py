"""From arguments to images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.cli.inputs import Image, InputError, collect


def names(*arguments: str, folders: tuple[Path, ...] = (), recursive: bool = False) -> list[str]:
    """The names of the images that the arguments stand for."""
    return [image.name for image in collect(arguments, folders, recursive=recursive, read_stdin=lambda: b"")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one with brackets in its name, one in a subfolder, and a subfolder that has an image's name."""
    for name in ("deep", "album.jpg"):
        (tmp_path / name).mkdir()
    for name in ("b.png", "a[1].jpg", "deep/c.webp", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_a_file_is_taken_as_it_is(folder: Path) -> None:
    """Any file that is named is sent, whatever its suffix, and also when it does not exist."""
    assert names(str(folder / "notes.txt"), "missing.jpg") == [str(folder / "notes.txt"), "missing.jpg"]


def test_a_name_with_brackets_is_a_file_first(folder: Path) -> None:
    """A file that exists is never read as a pattern."""
    assert names(str(folder / "a[1].jpg")) == [str(folder / "a[1].jpg")]


def test_a_pattern_is_expanded_in_order(folder: Path) -> None:
    """Patterns give images only, sorted; ** goes into subfolders."""
    assert names(str(folder / "*")) == [str(folder / "a[1].jpg"), str(folder / "b.png")]
    assert names(str(folder / "**" / "*.webp")) == [str(folder / "deep" / "c.webp")]


def test_folders_give_their_images(folder: Path) -> None:
    """A folder, as an argument or as an option, with subfolders only when asked."""
    assert names(str(folder)) == names(folders=(folder,)) == [str(folder / "a[1].jpg"), str(folder / "b.png")]
    assert str(folder / "deep" / "c.webp") in names(str(folder), recursive=True)


def test_every_kind_that_is_served_is_an_image(tmp_path: Path) -> None:
    """Of a folder, what the server reads is taken, whatever the case of its suffix."""
    served = ("a.jpg", "b.jpeg", "c.PNG", "d.webp", "e.bmp")
    for name in (*served, "f.gif", "g.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert names(str(tmp_path)) == [str(tmp_path / name) for name in served]


def test_a_file_url_is_a_path(folder: Path) -> None:
    """Escapes in a file: URL are undone; its host is this machine's or none, with two slashes or without."""
    path = (folder / "a[1].jpg").as_uri().removeprefix("file://")
    for start in ("file://", "file://localhost", "file:"):
        assert names(start + path) == [str(folder / "a[1].jpg")]


def test_stdin_is_read(folder: Path) -> None:
    """- is what standard input holds."""
    found = collect(["-"], [], recursive=False, read_stdin=lambda: b"bytes")
    assert found == [Image("-", b"bytes")]


@pytest.mark.parametrize(
    "argument",
    [
        "*.jpg",
        "ftp://host/a.jpg",
        "file://elsewhere/a.jpg",
        "file://a[1].jpg",
        "https://example.com/a.jpg",
        "",
    ],
)
def test_what_names_no_image_is_an_error(
    argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern without a match, a URL that is no local file and an empty name, of no folder, are usage errors."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "face.png").touch()
    with pytest.raises(InputError, match=r"no image matches|only file:///|name is empty"):
        names(argument)


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("x" * 300, "x" * 300),
        ("/9j/" + "A" * 5000, "/9j/" + "A" * 5000),
        ("file:///tmp/a%00b.jpg", "/tmp/a\0b.jpg"),
    ],
    ids=["long", "base64", "nul"],
)
def test_a_name_that_no_file_can_have_is_one_failed_image(argument: str, name: str) -> None:
    """As is one that does not exist: the others are not held up."""
    assert names(argument, "missing.jpg") == [name, "missing.jpg"]


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder in this one that may not be looked into, for this process as for any that is not root's."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/face.jpg").touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "closed").chmod(0)
    tmp_path.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody
    try:
        yield "closed"
    finally:
        os.seteuid(user)
        (tmp_path / "closed").chmod(0o700)


def test_what_may_not_be_looked_at_is_told(closed: str) -> None:
    """A file in it becomes one failed image; the folder itself gives none, nor does a pattern."""
    assert names("closed/face.jpg") == ["closed/face.jpg"]
    for argument in (closed, "closed/*.jpg"):
        with pytest.raises(InputError, match=r"closed cannot be read: Permission denied|no image matches"):
            names(argument)
    for recursive in (False, True):
        with pytest.raises(InputError, match="closed"):
            names(folders=(Path(closed),), recursive=recursive)
    with pytest.raises(InputError, match=r"closed/deep (cannot be read: Permission denied|is not a folder)"):
        names(folders=(Path("closed/deep"),))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    """A folder without images, and one that does not exist, are usage errors."""
    with pytest.raises(InputError, match="no images"):
        names(str(tmp_path))
    with pytest.raises(InputError, match="not a folder"):
        names(folders=(tmp_path / "none",))
    with pytest.raises(InputError, match="at least one"):
        names()
