"""Mosec: a Rust HTTP front that hands micro-batches to Python processes.

Tuned: one process per CPU with one thread each, orjson in place of json, dynamic batches up to 8 that are not waited
for longer than a millisecond.
"""

from __future__ import annotations

import os
from typing import Any

import orjson
from mosec import Server, Worker  # type: ignore[import-not-found]

from benchmarks.peers.job import Job


class Emotion(Worker):  # type: ignore[misc]
    """Base64 in, emotion out."""

    def __init__(self) -> None:
        super().__init__()
        self._job = Job()

    def deserialize(self, data: bytes) -> Any:
        """The request's body."""
        return orjson.loads(data)

    def serialize(self, data: Any) -> bytes:
        """The reply's body."""
        return orjson.dumps(data)

    def forward(self, data: list[dict[str, str]]) -> list[dict[str, Any]]:
        """A micro-batch."""
        return self._job([request["image"] for request in data])


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Emotion, num=int(os.environ["CPUS"]), max_batch_size=8, max_wait_time=1, route="/predict"
    )
    server.run()
