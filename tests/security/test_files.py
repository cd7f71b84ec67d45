"""Files that are replaced while the service runs: what tells that one was, and what holds where one is wrong."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from service.errors import StartupError, Unauthorized
from service.security.api_keys import ApiKeys, create
from service.security.credentials import Credentials
from service.security.files import WatchedFiles
from service.security.tls import Certificate
from service.security.tokens import read_keys
from service.settings import Settings


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


def test_a_file_that_could_not_be_read_is_read_when_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Though nothing but its rights has changed, or what the process may open; the log says it once in between."""
    path = tmp_path / "keys"
    create(path, "anna")
    credentials = Credentials(Settings(auth="required", api_keys_file=path))
    key = create(path, "bruno")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))  # root may read whatever it can open
    try:
        for _ in range(3):
            assert not credentials.refresh()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert caplog.text.count("cannot be read") == 1
    assert credentials.refresh()
    assert credentials.verify(key).user == "bruno"
    assert not credentials.refresh()


def test_a_key_that_was_deleted_is_gone_whatever_the_other_file_is_like(tmp_path: Path) -> None:
    """Keys of tokens that are wrong stay as they were read; they keep no API key alive."""
    keys, tokens = tmp_path / "keys", tmp_path / "jwks.json"
    key = create(keys, "anna")
    private = ec.generate_private_key(ec.SECP256R1())
    signed = jwt.encode({"sub": "bruno", "exp": time.time() + 60}, private, "ES256")
    tokens.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    credentials = Credentials(Settings(auth="required", api_keys_file=keys, jwt_key_file=tokens))
    tokens.write_text("half of a f")
    keys.write_text("# nobody\n")
    assert credentials.refresh()
    assert credentials.verify(signed).user == "bruno"
    with pytest.raises(Unauthorized):
        credentials.verify(key)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no FIFOs among its files")
@pytest.mark.parametrize("setting", ["API_KEYS_FILE", "JWT_KEY_FILE", "TLS_CERTIFICATE", "TLS_KEY"])
def test_what_may_never_be_read_to_its_end_is_refused(tmp_path: Path, setting: str) -> None:
    """A FIFO is told by its setting: a service that waited for what somebody writes to it would never start."""
    fifo, file = tmp_path / "fifo", tmp_path / "file"
    os.mkfifo(fifo)
    file.touch()
    read: dict[str, Callable[[], object]] = {
        "API_KEYS_FILE": lambda: ApiKeys.read(fifo),
        "JWT_KEY_FILE": lambda: read_keys(fifo),
        "TLS_CERTIFICATE": lambda: Certificate(fifo, file),
        "TLS_KEY": lambda: Certificate(file, fifo),
    }
    writer = threading.Thread(target=fifo.write_bytes, args=[b""])  # or whoever reads it would wait for ever
    writer.start()
    try:
        with pytest.raises(StartupError) as refused:
            read[setting]()
    finally:
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # or the writer would
        writer.join()
        os.close(reader)
    assert str(refused.value) == f"{setting}={fifo} is no file, but a FIFO, a device or a socket"
