"""The service's fixtures, and certificates and tokens made for the test."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.service.conftest import database, engine, running, serve

__all__ = ["database", "engine", "running", "serve"]


SECRET = "a secret of more than thirty-two bytes"


def users(database: str) -> list[Any]:
    """Of the stored predictions, in order."""
    with sqlite3.connect(database.removeprefix("sqlite:///")) as connection:
        rows = connection.execute("SELECT user_id FROM predictions_log ORDER BY timestamp").fetchall()
    connection.close()
    return [row[0] for row in rows]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """A certificate authority."""
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    """The files of a certificate for this machine, and of its key."""
    return write_certificate(authority, tmp_path)


def write_certificate(
    authority: trustme.CA, folder: Path, kind: trustme.KeyType = trustme.KeyType.ECDSA
) -> tuple[Path, Path]:
    """Write a new certificate over the one that is there."""
    issued = authority.issue_cert("127.0.0.1", "localhost", key_type=kind)
    chain, key = folder / "tls.crt", folder / "tls.key"
    key.write_bytes(issued.private_key_pem.bytes())
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return chain, key
