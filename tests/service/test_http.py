"""Plain HTTP on the WebSocket port."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request

import orjson
from prometheus_client.parser import text_string_to_metric_families

from tests.service.harness import TIMEOUT, Running, ask, predict_message


async def get(running: Running, path: str) -> tuple[int, str, bytes]:
    """Status, content type and body of a GET."""

    def fetch() -> tuple[int, str, bytes]:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{running.port}{path}", timeout=TIMEOUT
            ) as response:
                return response.status, response.headers["Content-Type"], response.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.headers["Content-Type"], exc.read()

    return await asyncio.to_thread(fetch)


async def test_the_process_says_that_it_lives(running: Running) -> None:
    """/healthz answers 200 while the event loop turns."""
    status, content_type, body = await get(running, "/healthz")
    assert (status, content_type) == (200, "application/json")
    assert orjson.loads(body) == {"status": "alive"}


async def test_a_warm_service_is_ready(running: Running) -> None:
    """/readyz answers 200 when predictions can be made."""
    assert (await get(running, "/readyz"))[0] == 200


async def test_other_paths_are_not_found(running: Running) -> None:
    """404 for what is not there."""
    assert (await get(running, "/etc/passwd"))[0] == 404


async def test_metrics_count_what_happened(running: Running) -> None:
    """Predictions by emotion, errors by code, and a duration per stage, in Prometheus' format."""
    async with running.client() as websocket:
        for _ in range(3):
            await ask(websocket, predict_message())
        await ask(websocket, predict_message(b"broken"))
        await ask(websocket, '{"command": "nothing"}')
        status, content_type, body = await get(running, "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }
    assert samples["visionai_predictions_total", "happy"] == 3
    assert samples["visionai_errors_total", "invalid_image"] == 1
    assert samples["visionai_errors_total", "unknown_command"] == 1
    assert samples["visionai_connections",] == 1
    assert samples["visionai_queue_depth",] == 0
    assert samples["visionai_workers_ready",] == 1
    assert samples["visionai_batch_size_count",] == 3
    for stage in ("decode", "queue", "inference", "total"):
        assert samples["visionai_stage_duration_seconds_count", stage] == 3
