"""Plain HTTP on the WebSocket port."""

from __future__ import annotations

import asyncio
from email.utils import parsedate_to_datetime

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.harness import TIMEOUT, Running, Serve, ask, get, predict_message

UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


async def exchange(running: Running, request: bytes) -> tuple[bytes, bytes]:
    """The head and the body that answer a request, whatever it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(request + b"Host: x\r\n\r\n")
    async with asyncio.timeout(TIMEOUT):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return head, body


async def test_the_process_says_that_it_lives(running: Running) -> None:
    """/healthz answers 200 while the event loop turns."""
    status, headers, body = await get(running, "/healthz")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert orjson.loads(body) == {"status": "alive"}


async def test_a_warm_service_is_ready(running: Running) -> None:
    """/readyz answers 200 when predictions can be made."""
    assert (await get(running, "/readyz"))[0] == 200


async def test_other_paths_are_not_found(running: Running) -> None:
    """404 for what is not there, and at /ws without an upgrade, as behind a proxy that passes none on: it says so."""
    assert (await get(running, "/etc/passwd"))[0] == 404
    status, _, body = await get(running, "/ws")
    assert status == 404
    assert b"WebSocket" in body


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (b"GET //[ HTTP/1.1\r\n", 404),
        (b"GET //x/metrics HTTP/1.1\r\n", 404),
        (b"GET ?/metrics HTTP/1.1\r\n", 404),
        (b"GET *://x/metrics HTTP/1.1\r\n", 404),
        (b"GET ://x/metrics HTTP/1.1\r\n", 404),
        (b"GET 1://x/metrics HTTP/1.1\r\n", 404),
        (b"GET http:// HTTP/1.1\r\n", 404),
        (b"GET http://x/healthz?y HTTP/1.1\r\n", 200),
        (b"GET http://[ HTTP/1.1\r\n", 200),
        (b"GET /elsewhere HTTP/1.1\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n", 404),
        (b"GET /ws HTTP/1.1\r\nUpgrade: h2c\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n", 426),
        (b"GET /ws HTTP/1.1\r\nUpgrade: WebSocket\r\n", 426),
    ],
)
async def test_odd_requests_are_answered_without_a_failure(
    running: Running, request_head: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Paths that are no URL or look like hosts, whole URLs, what looks like one, a header twice or in other letters."""
    head, _ = await exchange(running, request_head)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert not caplog.records


@pytest.mark.parametrize("path", [b"/", b"/healthz", b"/metrics", b"/nothing"])
async def test_head_is_answered_like_get_without_a_body(running: Running, path: bytes) -> None:
    """Its headers are those of GET, the length included."""
    head, body = await exchange(running, b"HEAD " + path + b" HTTP/1.1\r\n")
    assert body == b""
    expected, there = await exchange(running, b"GET " + path + b" HTTP/1.1\r\n")
    assert head.split(b"\r\n")[0] == expected.split(b"\r\n")[0]
    if path != b"/metrics":  # they change
        assert b"Content-Length: %d\r\n" % len(there) in head + b"\r\n"


async def test_head_opens_no_websocket(running: Running) -> None:
    """Whatever upgrade it asks for: a handshake is a GET (RFC 6455, section 4.1)."""
    head, body = await exchange(running, b"HEAD / HTTP/1.1\r\n" + UPGRADE)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == b""


@pytest.mark.parametrize("version", [b"8", b"14", b"13, 8"])
async def test_a_client_of_another_websocket_version_is_told_ours(running: Running, version: bytes) -> None:
    """RFC 6455, section 4.2.2: with the refusal, so that it may try that one."""
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    head, _ = await exchange(
        running, b"GET / HTTP/1.1\r\n" + upgrade + b"Sec-WebSocket-Version: " + version + b"\r\n"
    )
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in head + b"\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\n", 200),
        (b"GET /healthz HTTP/1.0\r\n", 200),  # as HAProxy's checks are
        (b"GET /healthz HTTP/1.1\r\nHost: \r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: x\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\nHost: x\r\nHost: y\r\n", 400),
        (b"HEAD /healthz HTTP/1.1\r\nHost: x\r\nHost: x\r\n", 400),
        (b"GET /ws HTTP/1.1\r\n" + UPGRADE, 101),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\nHost: x\r\n" + UPGRADE, 400),
        (b"GET /ws HTTP/1.1\r\nHost: x\r\n" + UPGRADE, 101),
    ],
)
async def test_a_request_may_not_name_two_hosts(running: Running, request_bytes: bytes, status: int) -> None:
    """A proxy may have taken the other. One that names none is answered: clients in use may send none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(request_bytes + b"\r\n")
    async with asyncio.timeout(TIMEOUT):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        if status == 400:
            assert (b"Host" in await reader.read()) == request_bytes.startswith(b"GET")
    writer.close()


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"DELETE", b"OPTIONS"])
async def test_other_methods_are_not_allowed(running: Running, method: bytes) -> None:
    """405, with those that are."""
    for extra in (b"", b"Upgrade: websocket\r\n"):
        head, _ = await exchange(running, method + b" / HTTP/1.1\r\n" + extra)
        assert head.startswith(b"HTTP/1.1 405 ")
        assert b"Allow: GET, HEAD" in head


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET /healthz HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\n",
        b"GET / HTTP/1.1\r\nIf-None-Match: *\r\n",
        b"GET /nothing HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 2\r\n",
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n",
        b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: https://elsewhere.example\r\n",
    ],
)
async def test_every_answer_says_when_it_was_made_and_is_the_last(serve: Serve, request_head: bytes) -> None:
    """RFC 9110, 6.6.1, and RFC 9112, 9.6: also the page, what cannot be read, and a handshake that is refused.

    None is kept by who passes it on, but for the page's files, and those are asked about each time.
    """
    async with serve(origins=("same-origin",)) as running:
        head, _ = await exchange(running, request_head)
    (date,) = [line[6:] for line in head.split(b"\r\n") if line.startswith(b"Date: ")]
    assert parsedate_to_datetime(date.decode()).tzinfo is not None
    assert b"\r\nConnection: close" in head
    kept = b"no-cache" if b"\r\nETag: " in head else b"no-store"
    assert b"\r\nCache-Control: " + kept in head


async def test_metrics_count_what_happened(running: Running) -> None:
    """Predictions by emotion, errors by code, and a duration per stage, in Prometheus' format."""
    async with running.client() as websocket:
        for _ in range(3):
            await ask(websocket, predict_message())
        await ask(websocket, predict_message(b"broken"))
        await ask(websocket, '{"command": "nothing"}')
        status, headers, body = await get(running, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
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
