"""What operators see: metrics by convention, a dashboard that fits them, logs, traces."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import logging
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from websockets.sync.client import connect

from service.processes.cells import SharedCells
from service.telemetry.logs import JsonFormatter
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import start_tracing
from tests.service.harness import FACE, ROOT, TIMEOUT, StartProcess, metric, predict_message, run_service
from tests.service.reloading import copy_model, reload

METRICS = Metrics(("happy", "sad"), SharedCells(1), 0, ("v1",))
FAMILIES = list(text_string_to_metric_families(METRICS.exposition().decode()))
DASHBOARD = json.loads((ROOT / "deploy/grafana/visionai.json").read_text())

# A journal and a reply that take their time.
SLOW_BEHIND = """
import time
from service.network.connection import Connection
from service.store.segments import SegmentWriter
def after(seconds, work):
    return lambda *given: (time.sleep(seconds), work(*given))[1]
SegmentWriter.append = after(0.2, SegmentWriter.append)
Connection.settle = after(0.1, Connection.settle)
"""


def test_metrics_follow_the_conventions() -> None:
    """One prefix, base units at the end of names, counters in _total, and a text for each (prometheus.io/docs)."""
    for family in FAMILIES:
        assert re.fullmatch(r"visionai_[a-z][a-z_]*[a-z]", family.name)
        assert family.documentation
        assert not re.search(r"milli|micro|minutes|kilo|percent|_(count|sum|total|bucket)$", family.name)
        names = {sample.name for sample in family.samples}
        if family.type == "counter":
            assert names <= {f"{family.name}_total"}
        elif family.type == "gauge":
            assert names <= {family.name}
        else:
            assert family.type == "histogram"
        if "duration" in family.name:
            assert family.name.endswith("_seconds")
        if "memory" in family.name:
            assert family.name.endswith("_bytes")


def test_latency_buckets_resolve_less_than_a_millisecond() -> None:
    """Five bounds and more below 1 ms, in steps of at most 2.5, up to seconds."""
    (durations,) = (family for family in FAMILIES if family.name == "visionai_stage_duration_seconds")
    bounds = sorted(
        {float(sample.labels["le"]) for sample in durations.samples if sample.name.endswith("_bucket")}
    )[:-1]
    assert sum(bound < 0.001 for bound in bounds) >= 5
    assert bounds[-1] >= 1
    assert all(after / before <= 2.51 for before, after in pairwise(bounds))


async def test_cpu_time_is_counted_through_a_reload(start_process: StartProcess, tmp_path: Path) -> None:
    """Prometheus would take a smaller sum for a restart, and show all of it as spent at once."""
    service = start_process(WORKERS="1")
    begun = metric(service, "visionai_cpu_seconds_total")
    with connect(service.url) as websocket:
        websocket.recv()
        while (spent := metric(service, "visionai_cpu_seconds_total")) < 2 * begun:
            for _ in range(100):
                websocket.send(predict_message())
                websocket.recv(TIMEOUT)
    assert (await reload(tmp_path))[0] == 0
    assert metric(service, "visionai_cpu_seconds_total") > spent


def test_a_slow_disk_and_a_slow_reply_are_stages_of_their_own(start_process: StartProcess) -> None:
    """What a client waits for behind its prediction shows, the journal's disk say; once for each batch."""
    service = start_process(WORKERS="1", faults=SLOW_BEHIND)
    with connect(service.url) as websocket:
        websocket.recv(TIMEOUT)
        websocket.send(predict_message())
        websocket.recv(TIMEOUT)
    for stage, seconds in (("store", 0.2), ("reply", 0.1)):
        name = "visionai_stage_duration_seconds"
        assert metric(service, f'{name}_count{{stage="{stage}"}}') == 1
        assert metric(service, f'{name}_sum{{stage="{stage}"}}') >= seconds


def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    """Every name and every label in its queries is one that the service exports; every metric is shown."""
    labels = {sample.name: set(sample.labels) for family in FAMILIES for sample in family.samples}
    exported = {name for family in FAMILIES for name in (family.name, f"{family.name}_total")} | set(labels)
    shown: set[str] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["description"]
        for target in panel["targets"]:
            names = set(re.findall(r"\bvisionai_\w+", target["expr"]))
            assert names
            assert names <= exported, target["expr"]
            shown |= names
            for group in re.findall(r"by \(([^)]*)\)", target["expr"]):
                for name in names & set(labels):
                    assert {label.strip() for label in group.split(",")} <= labels[name]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len(shown) >= 14


def test_a_json_line_has_the_exception_and_the_request_ids() -> None:
    """One object, one line, whatever is in the message."""
    try:
        raise ValueError("line one\nline two")
    except ValueError as error:
        record = logging.makeLogRecord(
            {
                "name": "service.batching.predictor",
                "levelno": logging.ERROR,
                "levelname": "ERROR",
                "msg": "a batch of %d failed",
                "args": (2,),
                "exc_info": (type(error), error, error.__traceback__),
                "request_ids": ["a", 7],
            }
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found = orjson.loads(line)
    assert (found["level"], found["logger"]) == ("ERROR", "service.batching.predictor")
    assert (found["message"], found["request_ids"]) == ("a batch of 2 failed", ["a", 7])
    assert "line two" in found["exception"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found["timestamp"])


# As on macOS and Windows: processes inherit nothing, and so no log.
SPAWNING = """
import multiprocessing
spawning = multiprocessing.get_context("spawn")
multiprocessing.get_context = lambda _: spawning
"""


@pytest.mark.parametrize("faults", [None, SPAWNING], ids=["forked", "spawned"])
def test_the_log_of_a_service_is_json_where_it_is_asked_for(
    start_process: StartProcess, tmp_path: Path, faults: str | None
) -> None:
    """Every line that its processes write to stderr is an object."""
    model = copy_model(tmp_path)  # without a manifest, which a worker tells
    service = start_process(
        faults=faults, LOG_FORMAT="json", LOG_LEVEL="INFO", MODEL_PATH=str(model), WORKERS="1"
    )
    service.process.terminate()
    _, err = service.process.communicate(timeout=TIMEOUT)
    lines = [orjson.loads(line) for line in err.splitlines()]
    assert any("migrated" in line["message"] for line in lines)
    assert any("no manifest" in line["message"] for line in lines)


def test_a_json_line_holds_what_is_no_utf_8() -> None:
    """Such as the name of a file in another encoding."""
    record = logging.makeLogRecord({"msg": "%s is left", "args": (Path(os.fsdecode(b"caf\xe9")),)})
    assert json.loads(JsonFormatter().format(record))["message"] == "caf\udce9 is left"


async def test_the_log_of_a_service_that_cannot_store_at_its_end_is_json(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """It tells how many predictions are not in the database, and that is a line like the others."""
    service = start_process(LOG_FORMAT="json", WORKERS="1", DRAIN_SECONDS="0.1")
    with closing(sqlite3.connect(tmp_path / "process.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with connect(service.url) as websocket:
            websocket.recv()
            websocket.send(predict_message())
            websocket.recv(TIMEOUT)
        service.process.terminate()
        _, err = service.process.communicate(timeout=TIMEOUT)
    lines = [orjson.loads(line) for line in err.splitlines()]
    assert "1 predictions that are not stored" in lines[-1]["message"]


def _damaged_pictures() -> Iterator[bytes]:
    """A PNG with a hole in its picture, and a BMP of a kind there is not: libpng and OpenCV complain of them."""
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    png = cv2.imencode(".png", pixels)[1].tobytes()
    yield png[:200] + bytes(2000) + png[2200:]
    bitmap = bytearray(cv2.imencode(".bmp", pixels)[1].tobytes())
    bitmap[30] = 77  # the kind of compression
    yield bytes(bitmap)


def test_damaged_images_leave_nothing_in_the_log(start_process: StartProcess) -> None:
    """The C libraries' complaints would be lines that no program can read, as many as a client likes."""
    service = start_process(WORKERS="1", LOG_FORMAT="json")
    with connect(service.url) as websocket:
        websocket.recv()
        for picture in _damaged_pictures():
            websocket.send(picture)
            assert orjson.loads(websocket.recv())["code"] == "invalid_image"
    service.process.terminate()
    _, err = service.process.communicate(timeout=TIMEOUT)
    assert err == ""


def test_no_image_is_in_the_log_at_debug(start_process: StartProcess) -> None:
    """Neither of images that can be read nor of others, as base64 or as bytes, nor who sent them."""
    service = start_process(LOG_FORMAT="json", LOG_LEVEL="DEBUG", AUTH="off")
    with connect(service.url, additional_headers={"X-Forwarded-For": "203.0.113.9"}) as websocket:
        websocket.recv(TIMEOUT)
        for image in (FACE, FACE[: len(FACE) // 2], b"no image at all, but private"):
            websocket.send(predict_message(image, id="a"))
            websocket.recv(TIMEOUT)
            websocket.send(b'{"id": "b"}\n' + image)
            websocket.recv(TIMEOUT)
        websocket.send(predict_message()[:-1])  # no JSON any more
        websocket.recv(TIMEOUT)
    service.process.terminate()
    _, log = service.process.communicate(timeout=TIMEOUT)
    assert all(orjson.loads(line) for line in log.splitlines())
    for hidden in (base64.b64encode(FACE).decode()[:24], "private", "JFIF", "203.0.113.9"):
        assert hidden not in log


class _Collector:
    """An OTLP receiver over HTTP: keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.services: set[str] = set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = ExportTraceServiceRequest()
                message.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in message.resource_spans:
                    for attribute in resource.resource.attributes:
                        if attribute.key == "service.name":
                            collector.services.add(attribute.value.string_value)
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Silent."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def collector() -> Iterator[_Collector]:
    """A receiver that listens."""
    collector = _Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    thread.join()
    collector.server.server_close()


async def test_requests_are_traced_stage_by_stage(start_process: StartProcess, collector: _Collector) -> None:
    """A span for each request and one in it for each stage, in order and inside of it; errors are marked."""
    service = start_process(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, WORKERS="1")

    def talk() -> None:
        with connect(service.url) as websocket:
            websocket.recv()
            for frame in (b'{"id": "good"}\n' + FACE, b'{"id": "bad"}\nno image'):
                websocket.send(frame)
                websocket.recv()
        service.process.terminate()
        service.process.communicate(timeout=TIMEOUT)

    await asyncio.to_thread(talk)
    assert collector.services == {"visionai"}
    roots = {
        attribute.value.string_value: span
        for span in collector.spans
        for attribute in span.attributes
        if attribute.key == "visionai.request_id"
    }
    assert set(roots) == {"good", "bad"}
    stages = sorted(
        (span for span in collector.spans if span.parent_span_id == roots["good"].span_id),
        key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano),
    )
    assert [span.name for span in stages] == ["queue", "decode", "inference", "store", "reply"]
    for span in stages:
        assert roots["good"].start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= roots["good"].end_time_unix_nano
    assert roots["bad"].status.message == "invalid_image"
    assert b"happy" not in b"".join(span.SerializeToString() for span in collector.spans)


def test_a_collector_that_does_not_answer_holds_up_no_shutdown(
    start_process: StartProcess, tmp_path: Path
) -> None:
    """The service ends as ever, with all of it stored, and is not killed for waiting."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        service = start_process(
            WORKERS="1",
            JOURNAL_DIR="",
            DRAIN_SECONDS="0.1",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
            OTEL_EXPORTER_OTLP_TIMEOUT="60",
        )
        with connect(service.url) as websocket:
            websocket.recv(TIMEOUT)
            websocket.send(predict_message())
            websocket.recv(TIMEOUT)
        service.process.terminate()
        _, err = service.process.communicate(timeout=2 * TIMEOUT)
    assert service.process.returncode == 0, err
    with closing(sqlite3.connect(tmp_path / "process.db")) as stored:
        assert stored.execute("SELECT count(*) FROM predictions_log").fetchone() == (1,)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_the_variables_there_are_no_traces(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off by itself, and where the standard variables turn it off."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert start_tracing("1") is None


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "100000"}, "max_export_batch_size must be less than"),
        ({"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}, "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be"),
    ],
)
def test_a_wrong_variable_of_opentelemetry_is_told_as_any_setting(
    setting: dict[str, str], why: str, tmp_path: Path
) -> None:
    """By what the library says of it, without a traceback."""
    ended = run_service(cwd=tmp_path, PORT="0", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", **setting)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        f"VisionAI cannot start: a setting of OpenTelemetry (OTEL_…) is wrong: {why}"
    )
    assert ended.stderr.count("\n") == 1
