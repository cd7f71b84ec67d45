"""LitServe: FastAPI in front of worker processes.

Tuned: one worker per CPU with one thread each, one HTTP process per worker, the fast queue, no batching (on a CPU with
one thread per worker a batch gains nothing, and the wait for it costs).
"""

from __future__ import annotations

import os
from typing import Any

import litserve  # type: ignore[import-not-found]

from benchmarks.peers.job import Job


class Emotion(litserve.LitAPI):  # type: ignore[misc]
    """Base64 in, emotion out."""

    def setup(self, device: str) -> None:
        """Load the model, in each worker."""
        self._job = Job()

    def predict(self, request: dict[str, str]) -> dict[str, Any]:
        """One request."""
        return self._job([request["image"]])[0]


if __name__ == "__main__":
    cpus = int(os.environ["CPUS"])
    server = litserve.LitServer(Emotion(), accelerator="cpu", workers_per_device=cpus, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=cpus,
        log_level="warning",
        generate_client_file=False,
    )
