"""What a worker tells of itself and of its siblings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest

from service.canary import Version
from service.commands.answers import Answers
from service.engine import Engine
from service.processes.cells import Gauge, SharedCells
from service.protocol.requests import Query
from service.settings import Settings
from service.store import Store, StoreStatus
from service.telemetry.metrics import Metrics


@pytest.mark.parametrize(
    ("gauge", "own", "failing", "error"),
    [
        (None, None, None, None),
        (Gauge.DATABASE_FAILING, None, ["database"], "another worker cannot write to its database"),
        (Gauge.JOURNAL_FAILING, None, ["journal"], "another worker cannot write to its journal"),
        (Gauge.DATABASE_FAILING, "no route to db-7", ["database"], "no route to db-7"),
    ],
)
@pytest.mark.parametrize("in_detail", [True, False])
def test_a_store_that_fails_is_told_of_by_each_worker(
    engine: Engine,
    gauge: Gauge | None,
    own: str | None,
    failing: list[str] | None,
    error: str | None,
    in_detail: bool,
) -> None:
    """Whose it is, too; its own words, which name hosts and files, only to those who may have the details."""
    shared = SharedCells(2)
    if gauge is not None:
        shared.row(1)[gauge] = 1
    store = SimpleNamespace(status=lambda: StoreStatus(0, 0, 0, 0, own, taking=True, writing=own is None))
    version = Version(engine, cast("Store", store))
    metrics = Metrics(engine.card.labels, shared, 0, [engine.card.version_tag])
    answers = Answers(Settings(), [version], metrics, lambda: None, lambda: None)
    told: dict[str, Any] = orjson.loads(answers.answer(version, Query(1, "health"), in_detail))
    assert told["status"] == ("healthy" if failing is None else "degraded")
    assert told["store"].get("failing") == failing
    assert told["store"].get("error") == (error if in_detail else None)


@pytest.mark.parametrize("in_detail", [True, False])
def test_why_a_reload_failed_is_told_to_those_who_may_have_the_details(
    engine: Engine, in_detail: bool
) -> None:
    """It names folders and files of the server."""
    store = SimpleNamespace(status=lambda: StoreStatus(0, 0, 0, 0, None, taking=True, writing=True))
    version = Version(engine, cast("Store", store))
    metrics = Metrics(engine.card.labels, SharedCells(1), 0, [engine.card.version_tag])
    metrics.reloads.count("/srv/models/new.onnx cannot be read")
    answers = Answers(Settings(), [version], metrics, lambda: None, lambda: None)
    told: dict[str, Any] = orjson.loads(answers.answer(version, Query(1, "health"), in_detail))
    assert told.get("reload_error") == ("/srv/models/new.onnx cannot be read" if in_detail else None)
