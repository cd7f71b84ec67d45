"""API keys: made once, stored hashed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.errors import StartupError, Unauthorized
from service.security.api_keys import ApiKeys, create


def test_a_key_that_was_made_names_its_user_and_is_not_in_the_file(tmp_path: Path) -> None:
    """Only a hash is stored, in a file that others cannot read; keys of several users live side by side."""
    path = tmp_path / "keys"
    first, second = create(path, "anna"), create(path, "bruno")
    assert path.stat().st_mode & 0o777 == 0o600
    assert first not in path.read_text()
    keys = ApiKeys.read(path)
    assert keys.verify(first).user == "anna"
    assert keys.verify(second).user == "bruno"
    with pytest.raises(Unauthorized):
        keys.verify(first + "x")


@pytest.mark.parametrize("days", [0, 90])
def test_a_key_may_end(tmp_path: Path, days: int) -> None:
    """At the end of its last day, which is in its line."""
    path = tmp_path / "keys"
    before = time.time()
    key = create(path, "anna", days=days)
    expires = ApiKeys.read(path).verify(key).expires
    assert expires % 86_400 == 0
    assert before < expires - days * 86_400 <= time.time() + 86_400


def test_lines_may_be_commented_and_deleted(tmp_path: Path) -> None:
    """A key whose line is gone is not known any more."""
    path = tmp_path / "keys"
    key = create(path, "anna")
    path.write_text("# ours\n\n" + path.read_text().strip() + "  # the camera at the door\n")
    assert ApiKeys.read(path).verify(key).user == "anna"
    path.write_text("# none\n")
    with pytest.raises(Unauthorized):
        ApiKeys.read(path).verify(key)


def test_a_key_has_a_line_of_its_own(tmp_path: Path) -> None:
    """Also in a file whose last line was left without an end."""
    path = tmp_path / "keys"
    first = create(path, "anna")
    path.write_text(path.read_text().rstrip())
    second = create(path, "bruno")
    keys = ApiKeys.read(path)
    assert (keys.verify(first).user, keys.verify(second).user) == ("anna", "bruno")


def test_a_second_key_is_made_where_there_is_no_pread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where the first one was made and every other ended in a traceback."""
    monkeypatch.delattr("os.pread")
    path = tmp_path / "keys"
    first, second = create(path, "anna"), create(path, "bruno")
    keys = ApiKeys.read(path)
    assert (keys.verify(first).user, keys.verify(second).user) == ("anna", "bruno")


def test_a_file_is_utf_8_whatever_the_system_takes_for_text(tmp_path: Path) -> None:
    """Also with the mark that Windows' editors put before it."""
    path = tmp_path / "keys"
    key = create(path, "josé")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert ApiKeys.read(path).verify(key).user == "josé"


def test_a_file_that_is_missing_is_told_with_what_makes_it(tmp_path: Path) -> None:
    """One that is there and cannot be read is told without."""
    with pytest.raises(
        StartupError, match="No such file or directory; `python -m service create-key USER` makes it"
    ):
        ApiKeys.read(tmp_path / "keys")
    with pytest.raises(StartupError, match=r"Is a directory$"):
        ApiKeys.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "abc anna 2026-01-01",
        f"{'0' * 64} anna",
        f"{'0' * 64} anna today",
        f"{'0' * 64} anna{' 2026-01-01' * 3}",
        "\xff",
    ],
)
def test_a_wrong_line_is_told(tmp_path: Path, content: str) -> None:
    """With the file's name and what is expected."""
    path = tmp_path / "keys"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(StartupError, match="API_KEYS_FILE"):
        ApiKeys.read(path)


@pytest.mark.parametrize("content", [b"abc anna 2026-01-01\n", b"\xff\xd8\xff\xe0"])
def test_a_file_that_the_service_would_not_take_gets_no_key(tmp_path: Path, content: bytes) -> None:
    """A wrong line, or no file of keys at all, as a picture by mistake: it is told, and stays as it is."""
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=r"line 1: expected HASH USER|is not a text file"):
        create(path, "anna")
    assert path.read_bytes() == content


@pytest.mark.parametrize("user", ["", "two words", "x#y", "x" * 256, "an\udcffna"])
def test_a_name_that_a_line_cannot_hold_is_refused(tmp_path: Path, user: str) -> None:
    """Before a key is made."""
    with pytest.raises(StartupError):
        create(tmp_path / "keys", user)
    assert not (tmp_path / "keys").exists()


def test_a_key_whose_line_cannot_be_written_is_not_given_out(tmp_path: Path) -> None:
    """The service would know nobody by it."""
    with pytest.raises(StartupError, match="cannot be written: No such file or directory"):
        create(tmp_path / "missing" / "keys", "anna")


@pytest.mark.parametrize("days", [-3, 99_999_999, 10**30])
def test_a_last_day_that_is_past_or_beyond_the_calendar_is_refused(tmp_path: Path, days: int) -> None:
    """Before a key is made that would never be valid."""
    with pytest.raises(StartupError, match=str(days)):
        create(tmp_path / "keys", "anna", days)
    assert not (tmp_path / "keys").exists()


def test_a_key_that_cannot_be_shown_is_told_with_what_to_do(tmp_path: Path) -> None:
    """On a full disk: its line is in the file, and nobody has seen the key."""
    path = tmp_path / "keys"
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "service", "create-key", "anna"],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"API_KEYS_FILE": str(path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    assert ended.returncode == 2
    assert f"delete the last line of {path}, and make another" in ended.stderr
    assert ended.stderr.count("\n") == 1
