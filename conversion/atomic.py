"""Write files that appear complete or not at all."""

import os
import tempfile
from pathlib import Path

from conversion.errors import ConversionError


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` beside `path` and rename it into place; make missing folders.

    Guarantees that `path` holds its old content or all of the new, also after a power cut. Raises
    ConversionError naming the path.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # A temporary file is private; a model is for whoever serves it.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise ConversionError(f"{path}: cannot write: {error.strerror}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
