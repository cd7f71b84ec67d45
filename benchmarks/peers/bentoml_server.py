"""BentoML: an ASGI server per worker.

Tuned: one worker per CPU with one thread each, and inference in the worker itself, without a hop to a runner.
"""

from __future__ import annotations

import os
from typing import Any

import bentoml  # type: ignore[import-not-found]

from benchmarks.peers.job import Job


@bentoml.service(workers=int(os.environ["CPUS"]), metrics={"enabled": False}, traffic={"timeout": 30})
class Emotion:
    """Base64 in, emotion out."""

    def __init__(self) -> None:
        self._job = Job()

    @bentoml.api  # type: ignore[untyped-decorator]
    async def predict(self, image: str) -> dict[str, Any]:
        """One request. Async, so that it runs in the event loop and not in a thread."""
        return self._job([image])[0]
