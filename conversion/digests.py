"""sha256 of files and of directories."""

import hashlib
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hex; of a directory (a SavedModel), over its files' names and hashes.

    A directory's hash does not depend on the order in which the file system lists it, on time stamps or on
    its own name. Raises OSError.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    members = sorted((member.relative_to(path).as_posix(), member) for member in path.rglob("*"))
    for name, member in members:
        if member.is_file():
            total.update(f"{sha256_of(member)}  {name}\n".encode())
    return total.hexdigest()
