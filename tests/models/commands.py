"""What the tests of `python -m models` share."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

RUNNER = CliRunner()


def said(output: str) -> str:
    """A usage error without its box."""
    return " ".join(output.replace("│", " ").split())


def write_faces(path: Path, count: int, seed: int = 0, side: int = 48) -> Path:
    """Random faces for both splits, half voted happy, half sad."""
    rng = np.random.default_rng(seed)
    votes = np.zeros((count, 10), np.uint8)
    votes[::2, 1] = votes[1::2, 3] = 10
    labels = np.where(np.arange(count) % 2, 5, 3).astype(np.uint8)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "val"):
        arrays |= {f"{split}_x": rng.integers(0, 256, (count, side, side), dtype=np.uint8)}
        arrays |= {f"{split}_y": labels, f"{split}_votes": votes}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A limit on the size of files stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
