"""JSON holds what the tables tell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.compare import Paired
from benchmarks.misbehave import Disturbance
from benchmarks.report import to_json, write_results
from benchmarks.sweep import Sweep
from tests.benchmarks.harness import LIMIT, LOAD, benchmark, results


def test_what_is_made_of_figures_is_in_the_json_with_them(tmp_path: Path) -> None:
    """Shares, ratios, the knee: on the terminal and in the file alike."""
    point = replace(LOAD, rate=2000.0)
    found = {
        "pairs": [Paired(LIMIT, LOAD, LOAD.latency)],
        "sweep": Sweep("64x64", 2000.0, [LOAD], [point]),
        "misbehave": Disturbance("floods", 1.0, 2.0, 3.0, 5.0, 0),
    }
    read = json.loads(to_json(found))
    assert read == json.loads(write_results(tmp_path, found).read_bytes())
    (pair,) = read["pairs"]
    assert pair["share"] == pytest.approx(2 / 3)
    assert (pair["plain_share"], pair["cpu_ratio"], pair["beyond_call_ms"]) == (0.5, 1.25, 0.0)
    assert read["sweep"]["knee"]["rate"] == 2000
    assert read["misbehave"]["factor"] == 2.5
    assert (pair["load"]["generator_cores"], pair["load"]["failed"]) == (0.5, 0)


def test_a_load_tells_how_it_was() -> None:
    """All that its options said, whether the server is asked in turns or at times."""
    common = ("--clients", "2", "--seconds", "0.2")
    (closed,) = results("load", *common, "--depth", "3", "--polling")["results"]
    assert {closed[name] for name in ("rate", "arrivals", "deadline_ms")} == {None}
    assert (closed["depth"], closed["polling"]) == (3, True)
    (opened,) = results("load", *common, *("--rate", "50", "--arrivals", "paced", "--deadline", "5000"))[
        "results"
    ]
    assert (opened["rate"], opened["arrivals"], opened["deadline_ms"]) == (50, "paced", 5000)
    assert opened["polling"] is False


def test_no_gpu_is_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine without one a script hears why there are no figures."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = results("gpu")
    assert (found["curve"], found["served"]) == ([], {})
    assert "cuda" in found["missing"].lower()


def test_a_model_that_is_missing_is_no_missing_gpu() -> None:
    """It is named first, with the exit code of a service that cannot be started."""
    ended = benchmark("gpu", "--model", "/missing.onnx")
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr.startswith("benchmarks: the model /missing.onnx does not exist")
