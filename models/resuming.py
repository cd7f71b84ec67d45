"""Folders of work that may be cut off and started again: what was begun goes on only with what it was begun with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
