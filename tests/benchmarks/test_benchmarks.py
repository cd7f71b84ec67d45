"""The command line measures what it says, against the real service."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner
from websockets.sync.server import ServerConnection, serve

from benchmarks.commands import app
from service.processes.cpus import available_cpus
from service.settings import DEFAULT_MODEL
from tests.benchmarks.harness import LOAD, ROOT, TIMEOUT, benchmark, ends_with_its_service, group, results


@pytest.mark.parametrize(
    "extra",
    [(), ("--binary",), ("--rate", "100"), ("--depth", "2"), ("--rate", "40", "--arrivals", "burst")],
)
def test_a_load_run_reports_the_servers_answers_and_usage(extra: tuple[str, ...]) -> None:
    """Each way to load gets right answers only, and usage is read from the started process."""
    (result,) = results("load", "--clients", "4", "--seconds", "0.6", *extra)["results"]
    assert result["succeeded"] > 10
    assert result["errors"] == {}
    assert result["wrong"] == 0
    assert result["goodput"] == pytest.approx(result["throughput"])
    assert result["server_cpu_seconds"] > 0
    assert result["server"]["pss_mb"] > 20
    assert 0 < result["latency"]["p50"] <= result["latency"]["p99"] <= result["latency"]["worst"]
    assert bool(result["bursts_ms"]) == ("burst" in extra)


def test_sizes_clients_and_repeats_multiply() -> None:
    """One call measures each size with each number of clients, as often as asked."""
    found = results(
        "load", "--size", "64x64,640x480", "--clients", "1,2", "--repeats", "2", "--seconds", "0.2"
    )["results"]
    assert [(each["size"], each["clients"]) for each in found] == [
        (size, clients) for size in ("64x64", "640x480") for clients in (1, 2) for _ in range(2)
    ]


def test_a_missed_objective_is_exit_4_and_is_shown() -> None:
    """A table names what was asked for, what was measured, and which was missed."""
    ended = benchmark("load", "--clients", "2", "--seconds", "0.3", "--slo", "p99=60s,rps=10000000")
    assert ended.returncode == 4, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if "rps=10000000" in line or "p99=60s" in line]
    assert [line.split("│")[-2].strip() for line in lines] == ["yes", "NO"]


def test_met_objectives_are_exit_0() -> None:
    """Nothing missed, nothing said by the exit code."""
    assert results("load", "--clients", "2", "--seconds", "0.3", "--slo", "p50=60s,rps=1,errors=0")["slo"]


def test_the_limit_is_measured_for_each_setting() -> None:
    """Threads and processes, each size and batch: all do the work they report."""
    found = results(
        "limit", "--size", "64x64,224x224", "--batch", "1,2", "--repeats", "1", "--seconds", "0.2"
    )["results"]
    assert len({(each["size"], each["batch"], each["workers"]) for each in found}) == 8
    for each in found:
        assert each["throughput"] > 1
        assert each["cpu_per_image_us"] > 10


@pytest.mark.parametrize("provider", ["auto", "gpu"])
def test_a_provider_that_the_limit_cannot_run_is_one_line(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service takes auto, too, which the bare loop cannot choose."""
    monkeypatch.setenv("PROVIDER", provider)
    ended = benchmark("limit", "--seconds", "0.2")
    assert ended.returncode == 3
    assert ended.stderr.startswith(f"benchmarks: PROVIDER={provider}: the bare loop runs on one of cpu, ")
    assert ended.stderr.count("\n") == 1


def test_detection_is_part_of_the_limit_where_it_is_asked_for() -> None:
    """A loop that looks for faces first takes longer for an image."""
    common = (
        "--size",
        "640x480",
        "--batch",
        "1",
        "--workers",
        "threads",
        "--repeats",
        "1",
        "--seconds",
        "0.4",
    )
    (plain,) = results("limit", *common)["results"]
    (detecting,) = results("limit", *common, "--detect", "auto")["results"]
    assert detecting["cpu_per_image_us"] > 1.2 * plain["cpu_per_image_us"]


def test_the_ratio_pairs_loop_and_service() -> None:
    """Each repeat has a measurement of both."""
    (pairs,) = results("ratio", "--clients", "4", "--repeats", "2", "--seconds", "0.4")["results"]
    assert len(pairs) == 2
    for pair in pairs:
        assert pair["limit"]["throughput"] > 0
        assert pair["load"]["throughput"] > 0


def test_the_profile_accounts_for_all_of_the_cpu_time() -> None:
    """Every stage was seen, the stages add up to the total, and the total is what the operating system says."""
    found = results("profile", "--clients", "16", "--seconds", "1.5")["profile"]
    # What timing costs is an estimate: the smallest stage, of half a microsecond, may come out below nothing.
    assert all(cost != 0 and cost > -2 for cost in found["stages"].values()), json.dumps(found["stages"])
    assert sum(found["stages"].values()) == pytest.approx(found["total"], rel=0.05)
    assert found["total"] == pytest.approx(found["plain_total"], rel=0.5)
    assert 0 < found["echo"] < found["total"]


def test_storing_compares_no_store_two_databases_and_one_that_is_gone() -> None:
    """All four answer the same load without errors."""
    found = results("storing", "--clients", "4", "--repeats", "1", "--seconds", "0.3")["results"]
    assert [each["storing"] for each in found] == ["dropped", "sqlite", "postgresql", "unreachable"]
    for each in found:
        assert each["load"]["succeeded"] > 10
        assert each["load"]["errors"] == {}


def test_idle_use_is_measured_with_open_connections() -> None:
    """Memory grows with connections, and the service is up before they come."""
    found = results("idle", "--connections", "50", "--seconds", "0.5")["idle"]
    assert found["ready_seconds"] > 0.1
    assert found["fresh_mb"] > 20
    assert found["cpu_share"] < 1


@pytest.mark.parametrize(
    ("missing", "arguments"),
    [("psutil", ("load",)), ("matplotlib", ("sweep",)), ("matplotlib", ()), ("orjson", ("ratio",))],
)
def test_what_is_not_installed_is_one_line(missing: str, arguments: tuple[str, ...]) -> None:
    """`make run` installs less than the benchmarks need, and a Python that is not that of .venv has nothing."""
    code = f"import sys; sys.modules['{missing}'] = None; from benchmarks.__main__ import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith(
        f"benchmarks: {missing} is missing: `make bench` installs it, or: pip install"
    )
    assert ended.stderr.count("\n") == 1


def test_results_that_cannot_be_printed_are_one_line() -> None:
    """On a full disk it says so, with the exit code of results that cannot be written to their folder."""
    one = ("--size", "64x64", "--batch", "1", "--workers", "threads", "--repeats", "1")
    command = [sys.executable, "-m", "benchmarks", "limit", *one, "--seconds", "0.2"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=TIMEOUT
        )
    assert ended.returncode == 2
    assert ended.stderr == "benchmarks: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("command", ["", "limit", "load", "idle", "faces ."])
def test_a_model_that_is_not_converted_yet_is_one_line(command: str, tmp_path: Path) -> None:
    """It says how the served model is built, and nothing is started."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (3, "")
    expected = (
        f"the model {DEFAULT_MODEL} does not exist: `make convert` builds it, and --model names another"
    )
    assert ended.stderr == f"benchmarks: {expected}\n"


def test_an_unreachable_server_is_one_line() -> None:
    """The error names the address, and the exit code is its own."""
    ended = benchmark("load", "--url", "ws://127.0.0.1:1", "--seconds", "0.2")
    assert ended.returncode == 3
    assert ended.stderr.count("\n") == 1
    assert "127.0.0.1:1" in ended.stderr


@contextmanager
def refusing_server() -> Iterator[str]:
    """The address of a server that answers everything with an error."""

    def refuse(websocket: ServerConnection) -> None:
        websocket.send('{"type": "welcome"}')
        for _ in websocket:
            websocket.send('{"status": "error", "code": "unauthorized"}')

    with serve(refuse, "127.0.0.1", 0, max_size=None, compression=None) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        serving.join()


def test_a_server_that_refuses_everything_has_no_sweep() -> None:
    """One line says what it answered, instead of a rate of none."""
    with refusing_server() as url:
        ended = benchmark("sweep", "--seconds", "0.2", "--url", url)
    assert ended.returncode == 1
    assert ended.stderr == "benchmarks: no request was answered: unauthorized\n"


@pytest.mark.parametrize("command", ["load", "ratio"])
def test_errors_are_exit_1(command: str) -> None:
    """A script does not take refusals for a slow server."""
    with refusing_server() as url:
        ended = benchmark(command, "--clients", "1", "--repeats", "1", "--seconds", "0.2", "--url", url)
    assert ended.returncode == 1, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("limit", "--size", "1x1"), "640x480"),
        (("sweep", "--size", "64x64,640x480"), "one of"),
        (("profile", "--size", "64x64,640x480"), "one of"),
        (("peers", "--size", "64x64,640x480"), "one of"),
        (("capacity", "--size", "1x1"), "one of"),
        (("capacity", "--cameras", "0"), "from 1"),
        (("load", "--arrivals", "burst"), "--rate"),
        (("limit", "--batch", "0"), "from 1"),
        (("limit", "--workers", "fibres"), "threads or processes"),
        (("load", "--slo", "p99=10"), "needs a unit"),
        (("load", "--slo", ""), "NAME=VALUE"),
        (("load", "--clients", "many"), "whole numbers"),
        (("peers", "--peers", "nginx"), "mosec"),
        (("load", "--url", "http://127.0.0.1:1"), "ws://HOST:PORT"),
        (("sweep", "--url", "ws://:1"), "ws://HOST:PORT"),
        (("ratio", "--url", "ws://127.0.0.1:port"), "port"),
        (("--repeats", "1", "limit"), "after the command: limit"),
        (("--model", "missing.onnx", "load"), "after the command: load"),
    ],
)
def test_a_wrong_option_says_what_was_expected(arguments: tuple[str, ...], expected: str) -> None:
    """Usage errors are exit code 2."""
    ended = benchmark(*arguments)
    assert ended.returncode == 2
    assert expected in ended.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_an_interrupt_of_the_limits_processes_ends_them_all_without_a_word() -> None:
    """A terminal's Ctrl-C reaches every process: exit code 130, and nobody is left."""
    command = [sys.executable, "-m", "benchmarks", "limit", "--workers", "processes", "--seconds", "60"]
    with group(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        bench = psutil.Process(process.pid)
        # Beside the workers there is multiprocessing's process that tracks what they share, which is idle.
        while sum(each.cpu_times().user > 0.3 for each in bench.children()) < available_cpus():
            assert process.poll() is None
            time.sleep(0.05)
        children = bench.children()
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, output.strip()) == (130, "")
    assert psutil.wait_procs(children, timeout=TIMEOUT)[1] == []


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
@pytest.mark.parametrize("ends", ["SIGTERM", "SIGHUP", "SIGKILL"])
def test_what_ends_the_group_of_the_limit_ends_its_workers_too(ends: str) -> None:
    """`timeout` sends it to all: the bench ends, no matter which lock its idle workers hold, and nobody is left."""
    code = """
import signal, sys
from benchmarks.limit import limit_bench
from service.settings import DEFAULT_MODEL
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: sys.exit(128 + number))
with limit_bench(DEFAULT_MODEL, 2) as bench:
    bench.measure("processes", "64x64", seconds=0.2)
    print(flush=True)
    signal.pause()
"""
    with group(sys.executable, "-c", code, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        children = psutil.Process(process.pid).children()
        # They wait for work: one for the pipe, with the lock of the queue, and the other for the lock.
        deadline = time.monotonic() + TIMEOUT
        while not all(each.status() == psutil.STATUS_SLEEPING for each in children):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        number = getattr(signal, ends)
        os.killpg(process.pid, number)
        process.wait(TIMEOUT)
    assert process.returncode == (-number if ends == "SIGKILL" else 128 + number)
    assert psutil.wait_procs(children, timeout=TIMEOUT)[1] == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("ends", "shell"), [("SIGTERM", ""), ("SIGHUP", ""), ("SIGTERM", "trap '' INT;")])
def test_a_benchmark_that_is_ended_ends_its_service(ends: str, shell: str) -> None:
    """Whatever it does when the signal comes: amid a load that is in a callback of the event loop, mostly. In the
    background of a script, too, where Ctrl-C is ignored."""
    load = f"{shell} exec {shlex.quote(sys.executable)} -m benchmarks load --clients 2 --seconds 60"
    ends_with_its_service(["sh", "-c", load], getattr(signal, ends))


@pytest.mark.parametrize("command", [(), ("sweep",)], ids=["short set", "sweep"])
def test_a_folder_that_cannot_be_written_is_told_before_measuring(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line and exit code 2, and nothing was started."""

    def started(*_: object) -> None:
        pytest.fail("measured before the folder was looked at")

    monkeypatch.setattr("benchmarks.suite.run_suite", started)
    monkeypatch.setattr("benchmarks.commands.started_service", started)
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "file" / "out"
    monkeypatch.setattr("benchmarks.commands.OUT", out)  # where a sweep is written
    ended = CliRunner().invoke(app, [*command] if command else ["--out", str(out)])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr == f"benchmarks: cannot write results into {out}: Not a directory\n"


def test_a_sweep_that_finds_no_room_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures first: what was measured for minutes is not lost with the disk; then one line and exit code 2."""
    monkeypatch.setattr("benchmarks.commands.OUT", tmp_path)
    monkeypatch.setattr("benchmarks.commands.sweep_clients", lambda *_: [LOAD])
    monkeypatch.setattr("benchmarks.commands.sweep_rates", lambda *_: [LOAD])
    (tmp_path / "sweep-64x64.svg").symlink_to("/dev/full")
    ended = CliRunner().invoke(app, ["sweep", "--json", "--url", "ws://127.0.0.1:1"])
    assert ended.exit_code == 2
    assert json.loads(ended.stdout)["sweep"]["saturation"] == LOAD.throughput
    assert ended.stderr == f"benchmarks: cannot write results into {tmp_path}: No space left on device\n"


def test_a_sweep_goes_over_clients_and_rates() -> None:
    """Rates are shares of the closed loop's best."""
    found = results("sweep", "--seconds", "0.2")["sweep"]
    assert [each["clients"] for each in found["closed"]] == [1, 2, 4, 8, 16, 64, 256]
    assert found["saturation"] == max(each["throughput"] for each in found["closed"])
    assert found["open"][-1]["rate"] == pytest.approx(found["saturation"])
    assert "</svg>" in (ROOT / "benchmarks/out/sweep-64x64.svg").read_text()


def test_the_short_set_measures_everything_and_writes_a_report(tmp_path: Path) -> None:
    """One command, as `make bench` runs it, with less time for each: every part is in the report and in the JSON."""
    ended = benchmark("--repeats", "1", "--seconds", "0.2", "--out", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    for part in ("limits", "pairs", "arrivals", "sweep", "idle", "storing", "profile"):
        assert found[part], part
    assert found["pairs"][0][0]["call"]["p50"] > 0, "one client is held against one call"
    assert found["machine"]["cpus"] >= 1
    report = (tmp_path / "report.html").read_text()
    assert report.count("<svg") >= 3
    assert "service / limit" in report
