"""Folders of work that may be cut off and started again: what was begun goes on only with what it was begun with."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

from conversion.atomic import write_atomically
from conversion.errors import ConversionError
from models.dataset import DataError

_SIGN = "made-by.json"


def begin(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Make `folder` and note there what its results depend on, or compare with what was noted.

    `made_from` is plain values and digests by the names that an error gives them. Raises DataError when the folder
    holds what was begun with others, or cannot be made.
    """
    sign = folder / _SIGN
    wanted = json.loads(json.dumps(made_from))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            write_atomically(sign, (json.dumps(wanted, indent=1) + "\n").encode())
            return
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None
    except ConversionError as error:
        raise DataError(str(error)) from None
    try:
        noted = json.loads(sign.read_text("utf-8"))
    except (OSError, ValueError):
        raise DataError(f"{folder}: does not say what it was begun with; delete it to begin anew") from None
    others = [name for name in {**noted, **wanted} if noted.get(name) != wanted.get(name)]
    if others:
        raise DataError(f"{folder}: begun with other {', '.join(others)}; delete it to begin anew")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have `folder` to oneself: what another process has begun there, and goes on with, is not to be mixed in.

    However a process ends, its folder is free. Windows has no such lock on a folder, nor have some network drives:
    there nothing is refused. Raises DataError.
    """
    if sys.platform == "win32":
        yield
    else:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{folder}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DataError(f"{folder}: another process works there; wait until it has ended") from None
        except OSError:
            pass  # a drive without such locks
        try:
            yield
        finally:
            os.close(descriptor)
