"""stats, history and top as processes."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import pty
import re
import signal
import sqlite3
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest

from client.cli.exit_codes import ExitCode
from client.cli.metrics import STAGES
from client.cli.top import metrics_address
from client.cli.watch import Watched
from tests.client.harness import FACE, ROOT, TIMEOUT, ServiceProcess, VisionAI, proxy_to
from tests.client.peer import V1_COMMANDS, Peer


async def test_stats_show_shares_and_latency(peer: Peer, visionai: VisionAI) -> None:
    """Counts by emotion with their share, the most frequent first, and the server's percentiles."""
    done = await visionai("stats", "--window", "30m", "--url", peer.url)
    assert done.code == 0, done.err
    _, happy, sad, *_ = done.out.splitlines()
    assert (happy.split()[:4], sad.split()[:2]) == (["happy", "3", "75.0", "%"], ["sad", "1"])
    assert "4 faces in the last 30m; latency p50 1.20 ms, p99 3.40 ms" in done.out
    assert peer.received[-1].message["window_s"] == 1800
    document = json.loads((await visionai("stats", "--json", "--url", peer.url)).out)
    assert (document["count"], document["window_s"]) == (4, 3600)


async def test_stats_of_a_window_without_a_unit_say_that_it_is_seconds(
    peer: Peer, visionai: VisionAI
) -> None:
    """Who meant days or hours sees it."""
    done = await visionai("stats", "--window", "7", "--url", peer.url)
    assert peer.received[-1].message["window_s"] == 7
    assert "faces in the last 7s" in done.out


async def test_stats_show_how_counts_changed(service: ServiceProcess, visionai: VisionAI) -> None:
    """--buckets draws the parts of the time, as high as their counts; the last of them is now."""
    done = await visionai("predict", FACE, "--url", service.url)
    assert done.code == 0, done.err
    async with asyncio.timeout(TIMEOUT):
        while not (table := await visionai("stats", "--buckets", "12", "--url", service.url)).out.count("█"):
            assert table.code == 0, table.err
    happy = next(line for line in table.out.splitlines() if line.startswith("happy"))
    assert happy.rstrip().endswith("▁▁▁▁▁▁▁▁▁▁▁█")


@pytest.mark.parametrize(("buckets", "lines"), [(0, 4), (24, 4), (32, 4), (60, 8)])
async def test_stats_keep_to_a_line_where_they_can(
    peer: Peer, visionai: VisionAI, buckets: int, lines: int
) -> None:
    """On 80 columns the bars of the shares give way to as many parts as fit; more are folded, and none is lost."""
    arguments = ("stats", "--window", "24h", "--buckets", str(buckets), "--url", peer.url)
    done = await visionai(*arguments, environment={"COLUMNS": "80"})
    assert done.code == 0, done.err
    assert (len(done.out.splitlines()), done.out.count("▁")) == (lines, 2 * buckets)
    assert "75.0 %" in done.out
    assert "80.0" not in done.out


@pytest.mark.parametrize("window", ["soon", "0h", "-1h", "1w"])
async def test_a_window_is_a_duration(visionai: VisionAI, window: str) -> None:
    """Anything but a duration above zero is a usage error."""
    done = await visionai("stats", f"--window={window}")
    assert (done.code, "is not a duration" in done.err) == (ExitCode.USAGE, True)


async def test_one_is_not_many(visionai: VisionAI, tmp_path: Path) -> None:
    """Where a line counts one prediction, or one frame, it names one."""
    service = ServiceProcess(tmp_path)
    service.start()
    try:
        assert "0 faces in the last 1h" in (await visionai("stats", "--url", service.url)).out
        assert (await visionai("predict", FACE, "--url", service.url)).code == 0
        async with asyncio.timeout(TIMEOUT):  # until it is stored
            while "1 face in the last 1h" not in (await visionai("stats", "--url", service.url)).out:
                pass
        assert "last hour  1 face, mean" in (await visionai("top", "--once", "--url", service.url)).out
    finally:
        service.stop()
    assert Watched(frames=1).summary().startswith("1 frame, ")


async def test_history_pages_until_it_has_enough(peer: Peer, visionai: VisionAI) -> None:
    """--limit may be more than there is; CSV has the server's fields as columns."""
    done = await visionai("history", "--limit", "3", "-f", "csv", "--url", peer.url)
    rows = list(csv.DictReader(done.out.splitlines()))
    assert [row["emotion_name"] for row in rows] == ["happy", "sad", "happy"]
    everything = await visionai("history", "--limit", "500", "--json", "--url", peer.url)
    assert len(json.loads(everything.out)) == 5
    table = await visionai("history", "--url", peer.url)
    assert len(table.out.splitlines()) == 6


async def test_a_row_without_an_emotion_has_empty_cells(
    visionai: VisionAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program may have written it: table and CSV tell the rest of it."""
    row = {"prediction_id": None, "timestamp": "2026-11-22T10:30:40", "model_version_tag": "v7"}
    page = {"predictions": [row | {"emotion_name": None, "confidence": None}], "next": None}
    monkeypatch.setattr(Peer, "_history", lambda *_: {"type": "history", "status": "success"} | page)
    async with Peer().running() as peer:
        table = await visionai("history", "--url", peer.url)
        done = await visionai("history", "-f", "csv", "--url", peer.url)
    assert table.out.splitlines()[-1].split()[2:] == ["v7"], table
    (found,) = csv.DictReader(done.out.splitlines())
    assert (found["emotion_name"], found["confidence"], found["model_version_tag"]) == ("", "", "v7")


async def test_names_with_brackets_are_shown_whole(visionai: VisionAI) -> None:
    """A version's tag is the operator's own text, and no markup."""
    async with Peer(version_tag="v2 [beta] [/]").running() as peer:
        done = await visionai("history", "--limit", "1", "--url", peer.url, environment={"COLUMNS": "120"})
    assert "  v2 [beta] [/]  " in done.out, done


async def test_an_old_server_has_no_history(visionai: VisionAI) -> None:
    """The message names the command and what the server has instead."""
    async with Peer(1, V1_COMMANDS).running() as peer:
        done = await visionai("history", "--url", peer.url)
    assert done.code == ExitCode.SERVER_ERROR
    assert "has no command 'history'; it has emotions, health, model_info, predict" in done.err


async def test_top_reads_the_servers_metrics(peer: Peer, visionai: VisionAI) -> None:
    """One reading shows clients, queue and the statistics, and no password; as JSON it has the same figures."""
    reading = ("top", "--once", "--interval", "0.1", "--url")
    done = await visionai(*reading, peer.url.replace("//", "//user:secret@"))
    assert (done.code, "secret" in done.out) == (0, False), done
    # A proxy in front may ask for it, before the metrics, too.
    assert [asked.headers.get("Authorization") for asked in peer.handshakes] == ["Basic dXNlcjpzZWNyZXQ="] * 3
    assert "predictions/s" in done.out
    assert "last hour  4 faces, mean confidence 80.0 %" in done.out
    document = json.loads((await visionai(*reading, peer.url, "--json")).out)
    assert (document["clients"], document["queue_depth"], document["rate"]) == (2, 5, 0)


async def test_top_on_the_real_service(service: ServiceProcess, visionai: VisionAI) -> None:
    """The service's own metrics have the names that the dashboard looks for."""
    done = await visionai("top", "--once", "--json", "--interval", "0.1", "--url", service.url)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["clients"] == 1
    assert None not in (document["queue_depth"], document["store_pending"], document["memory_bytes"])
    assert document["cpu_share"] is not None


def test_top_shows_every_stage_of_the_service(service: ServiceProcess) -> None:
    """A stage that is not shown would be slow unseen."""
    with urlopen(metrics_address(service.url), timeout=TIMEOUT) as answer:
        stages = re.findall(r'visionai_stage_duration_seconds_count{stage="(\w+)"}', answer.read().decode())
    assert tuple(stages) == STAGES


async def test_top_while_the_database_cannot_be_read(service: ServiceProcess, visionai: VisionAI) -> None:
    """What the metrics tell is shown all the same, with the reason in the place of the statistics."""
    with contextlib.closing(sqlite3.connect(service.database)) as database:
        database.execute("DROP TABLE emotion_minutes")
    done = await visionai("top", "--once", "--interval", "0.1", "--url", service.url)
    assert done.code == 0, done.err
    assert "predictions/s" in done.out
    assert "last hour  stored predictions cannot be read now" in done.out
    done = await visionai("top", "--once", "--json", "--interval", "0.1", "--url", service.url)
    assert (done.code, json.loads(done.out)["clients"]) == (0, 1)


async def test_top_outlives_a_restart_of_the_server() -> None:
    """On a terminal, it says that the server is gone, and goes on when it is back."""
    controller, terminal = pty.openpty()
    async with Peer().running() as peer:
        url = peer.url
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "client", "top", "--interval", "0.1", "--url", url),
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "200"},
            stdout=terminal,
            stderr=terminal,
        )
        os.close(terminal)
        shown = await _until_shown(controller, b"predictions/s")
    try:
        shown = await _until_shown(controller, b"does not answer")
        async with Peer().running(urlsplit(url).port or 0):
            # The screen is drawn anew from its beginning.
            shown = await _until_shown(controller, b"predictions/s")
            assert b"Traceback" not in shown
            process.send_signal(signal.SIGINT)
            await _until_closed(controller)
            async with asyncio.timeout(TIMEOUT):
                assert await process.wait() == ExitCode.INTERRUPTED
    finally:
        if process.returncode is None:
            process.kill()
        os.close(controller)


async def _until_shown(controller: int, wanted: bytes) -> bytes:
    """What a terminal shows, until it has shown this."""
    shown = b""
    async with asyncio.timeout(TIMEOUT):
        while wanted not in shown:
            shown += await asyncio.to_thread(os.read, controller, 65536)
    return shown


async def _until_closed(controller: int) -> None:
    """Read on, so that the program is not held up by a full terminal, until it has gone."""
    with contextlib.suppress(OSError):  # what Linux answers where the other end is closed
        while await asyncio.to_thread(os.read, controller, 65536):
            pass


async def test_top_reads_metrics_by_the_way_of_the_websocket(peer: Peer, visionai: VisionAI) -> None:
    """Where the server is found by a proxy only, that leads to its metrics, too."""
    port = int(peer.url.split(":")[2].removesuffix("/ws"))
    async with proxy_to(port) as (proxy, asked):
        done = await visionai(
            *("top", "--once", "--interval", "0.1", "--url", f"ws://vision.invalid:{port}/ws"),
            environment={"ws_proxy": proxy, "no_proxy": ""},
        )
    assert (done.code, done.err) == (0, "")
    assert "memory" in done.out
    assert len(asked) == 3  # the WebSocket, and the two readings
    for head in asked:
        assert head.startswith(b"CONNECT vision.invalid:%d " % port)
        assert b"Basic dXNlcjpzZWNyZXQ=" in head


async def test_top_of_a_server_without_metrics(visionai: VisionAI, tmp_path: Path) -> None:
    """A server that refuses /metrics is named with the HTTP status, and without what is secret in its address."""
    async with Peer(metrics=None).running() as peer:
        done = await visionai("top", "--once", "--url", peer.url.replace("//", "//user:secret@"))
    assert (done.code, "secret" in done.err) == (ExitCode.CANNOT_CONNECT, False)
    assert "has no metrics (HTTP 404)" in done.err
