"""API keys: made once, shown once, stored hashed, a line each in a file.

A line is the key's SHA-256 in hex, the user, the day it was made, and optionally the day it ends (UTC). A key has 256
random bits, so a plain hash cannot be reversed by guessing; a slow one would only slow the service down.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

from service.errors import StartupError, Unauthorized
from service.security.files import refuse_endless
from service.security.identity import Identity

# It tells a key from a token, and tells people and secret scanners what they have found.
PREFIX: Final = "visionai_"

# A surrogate is what Python makes of a byte of the command line that is no UTF-8.
_USER = re.compile(r"[^\s#\ud800-\udfff]{1,255}")


def create(path: Path, user: str, days: int | None = None) -> str:
    """Make a key for `user`, add it to the file, which is made where there is none, and return it.

    Args:
        days: how long it is valid, 0 for the rest of this day (UTC); None for ever.

    Raises:
        StartupError: the name cannot be a user's, there is no such last day, the file cannot be written, or what is in
            it is not keys alone: the service would not take it, and it is left as it is.
    """
    if not _USER.fullmatch(user):
        raise StartupError("a user's name has 1 to 255 characters of UTF-8, and neither spaces nor '#'")
    today = datetime.now(UTC).date()
    if days is not None and not 0 <= days <= (date.max - today).days:
        raise StartupError(
            f"a key is valid for 0 days or more, until the year {date.max.year} at most: not {days}"
        )
    key = PREFIX + secrets.token_urlsafe(32)
    ends = "" if days is None else f" {today + timedelta(days=days)}"
    line = f"{_digest(key)} {user} {today}{ends}\n"
    try:
        # Appended in one write: two that are made at once do not mix.
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            ApiKeys.read(path)
            if os.fstat(file).st_size:
                os.lseek(file, -1, os.SEEK_END)  # and not `pread`, which Windows has not
                if os.read(file, 1) != b"\n":  # an editor may have left it so
                    line = f"\n{line}"
            os.write(file, line.encode())
        finally:
            os.close(file)
    except OSError as exc:
        raise StartupError(f"API_KEYS_FILE={path} cannot be written: {exc.strerror}") from None
    return key


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The keys of one file. `users` maps a key's digest to who has it."""

    users: dict[str, Identity]

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Read a file. Empty lines and what follows a `#` are left out.

        Raises:
            StartupError: it cannot be read, or a line is not a key's; names the line.
        """
        refuse_endless("API_KEYS_FILE", path)
        try:
            # As `create` writes it; some editors put a mark before it.
            lines = path.read_text("utf-8-sig").splitlines()
        except OSError as exc:
            hint = (
                "; `python -m service create-key USER` makes it" if isinstance(exc, FileNotFoundError) else ""
            )
            raise StartupError(f"API_KEYS_FILE={path} cannot be read: {exc.strerror}{hint}") from None
        except UnicodeDecodeError:
            raise StartupError(f"API_KEYS_FILE={path} is not a text file") from None
        users = {}
        for number, line in enumerate(lines, 1):
            fields = line.partition("#")[0].split()
            if not fields:
                continue
            try:
                digest, user, made, *ends = fields
                date.fromisoformat(made)
                if len(bytes.fromhex(digest)) != hashlib.sha256().digest_size or len(ends) > 1:
                    raise ValueError
                expires = {"expires": _end(date.fromisoformat(ends[0]))} if ends else {}
            except ValueError:
                raise StartupError(
                    f"API_KEYS_FILE={path}, line {number}: expected HASH USER DAY [LAST_DAY], as create-key writes it"
                ) from None
            users[digest.lower()] = Identity(user, key=digest.lower(), **expires)
        return cls(users)

    def verify(self, key: str) -> Identity:
        """Who has this key.

        Raises:
            Unauthorized: nobody.
        """
        # What is looked up is a hash: how long that takes says nothing of the keys.
        identity = self.users.get(_digest(key))
        if identity is None:
            raise Unauthorized("the API key is not known")
        return identity


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _end(last: date) -> float:
    """The end of a day, as Unix time."""
    return datetime(last.year, last.month, last.day, tzinfo=UTC).timestamp() + 86_400
