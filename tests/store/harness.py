"""What tests of the store wait for, and how they name what they recorded."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

from service.store import PredictionRecord

PATIENCE_S = 30.0


def eventually(condition: Callable[[], bool]) -> None:
    """Fail unless the condition comes true."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ids(records: list[PredictionRecord]) -> set[UUID | None]:
    return {UUID(str(record["prediction_id"])) for record in records}
