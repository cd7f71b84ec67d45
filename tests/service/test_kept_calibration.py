"""Which choice is kept of what calibration measured, for whom, and what is done without one."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from service.engine import calibration, onnx
from service.engine.calibration import Measured, cache_file, calibrated
from service.errors import StartupError
from service.processes.apart import ignore_progress
from service.processes.cpus import available_cpus
from service.processes.reload import reloaded
from tests.service.harness import MODEL, OPEN


def test_calibration_is_done_once_per_machine_and_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second start reads what the first one measured; a damaged file is measured again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "STEADY", 0.0)  # however busy this machine is
    first = calibrated(OPEN)
    assert first.workers * first.threads >= 1
    assert first.max_batch >= 1
    (kept,) = (tmp_path / "visionai").iterdir()
    monkeypatch.setattr(calibration, "measure_apart", lambda *_, **__: pytest.fail("measured again"))
    assert calibrated(OPEN) == first
    kept.write_bytes(b"{}")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        calibrated(OPEN)


def test_onnxruntime_may_be_installed_under_another_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU it is the package onnxruntime-gpu; its version tells choices apart all the same."""

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = cache_file(MODEL, "cpu", 2)
    monkeypatch.setattr("onnxruntime.__version__", "0.0")
    assert cache_file(MODEL, "cpu", 2) != before


def test_a_choice_is_kept_for_one_model_setting_and_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A home may be shared by machines, a container be given fewer CPUs: what suits one is not taken for another's."""
    model, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    model.write_bytes(b"a")
    other.write_bytes(b"b")
    kept = [cache_file(model, "cpu", 2), cache_file(other, "cpu", 2), cache_file(model, "openvino", 2)]
    kept.append(cache_file(model, "cpu", 3))
    monkeypatch.setattr(calibration, "_processor", lambda: "another")
    kept.append(cache_file(model, "cpu", 2))
    assert len(set(kept)) == 5


def test_a_model_that_is_gone_meanwhile_is_an_error_that_says_so(tmp_path: Path) -> None:
    """It was found, and is being replaced: a reload reports that, and the old workers go on."""
    with pytest.raises(StartupError, match=r"gone\.onnx cannot be read"):
        cache_file(tmp_path / "gone.onnx", "cpu", 2)


def test_a_user_without_a_home_calibrates_at_each_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, whose user is a number: there is nowhere to keep the choice, and the service starts."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # nobody has that number
    assert calibrated(OPEN).max_batch >= 1


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Whatever is measured is chance; returns the folder for what is kept."""

    def measured_by_chance(_: Path, setting: str, *__: object, **___: object) -> calibration.Calibration:
        chosen = Measured("openvino" if setting == "auto" else "cpu", 1, 7, 4, 1000.0, steadiness=0.3)
        return calibration.Calibration([chosen], {}, chosen)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("MODEL_PATH", str(MODEL))
    monkeypatch.setattr(calibration, "measure_apart", measured_by_chance)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "visionai"


def test_what_was_measured_on_a_busy_machine_is_neither_used_nor_kept(
    monkeypatch: pytest.MonkeyPatch, busy: Path
) -> None:
    """A session for each CPU is right nearly everywhere; it is measured again at the next start."""
    monkeypatch.setattr(calibration, "available_cpus", lambda: 3)
    filled = calibrated(OPEN)
    assert (filled.workers, filled.threads, filled.max_batch) == (3, 1, 16)
    own = calibrated(replace(OPEN, threads=2, max_batch=5))
    assert (own.threads, own.max_batch) == (2, 5)
    assert not busy.exists()


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch, busy: Path) -> Path:
    """Whatever is measured seems to be no chance, and OpenVINO alone passes the gate; returns as `busy`."""

    def measured_steadily(*_: object, **__: object) -> calibration.Calibration:
        chosen = Measured("openvino", 1, 7, 4, 1000.0)
        return calibration.Calibration([chosen], {}, chosen)

    monkeypatch.setattr(calibration, "measure_apart", measured_steadily)
    return busy


def test_a_reload_measures_nothing_beside_its_own_load(monkeypatch: pytest.MonkeyPatch, busy: Path) -> None:
    """The machine is busy with what is served meanwhile: what is served with stays, until the next start."""
    monkeypatch.setattr(
        calibration, "measure_apart", lambda *_, **__: pytest.fail("measured beside the load")
    )
    current = replace(OPEN, workers=2, executors=0, threads=1, max_batch=12)
    for provider in ("cpu", "auto"):
        monkeypatch.setenv("PROVIDER", provider)
        fresh = reloaded(current, ignore_progress)
        assert (fresh.provider, fresh.workers, fresh.threads, fresh.max_batch) == ("cpu", 2, 1, 12)
    monkeypatch.setenv("PROVIDER", "cpu")
    fresh = reloaded(replace(current, provider="openvino"), ignore_progress)
    assert (fresh.provider, fresh.workers, fresh.threads, fresh.max_batch) == ("cpu", 2, 1, 16)
    assert not busy.exists()


@pytest.mark.parametrize("canary", ["", str(MODEL)])
def test_a_reload_takes_a_provider_that_passes_and_no_rate_of_it(
    monkeypatch: pytest.MonkeyPatch, steady: Path, canary: str
) -> None:
    """The model has to pass the gate on another provider than the CPU's, new or as before, and so has a canary; nothing
    is kept."""
    monkeypatch.setenv("PROVIDER", "openvino")
    monkeypatch.setenv("CANARY_MODEL_PATH", canary)
    current = replace(OPEN, workers=2, executors=0, threads=1, max_batch=12)
    fresh = reloaded(current, ignore_progress)
    assert (fresh.provider, fresh.workers, fresh.threads, fresh.max_batch) == ("openvino", 2, 1, 16)
    fresh = reloaded(replace(current, provider="openvino"), ignore_progress)
    assert (fresh.provider, fresh.workers, fresh.threads, fresh.max_batch) == ("openvino", 2, 1, 12)
    assert not steady.exists()


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"[]",
        b'{"provider":"cpu"}',
        b'{"provider":"cpu","sessions":"2","threads":1,"batch":4,"images_per_second":1}',
        b'{"provider":"cpu","sessions":2,"threads":true,"batch":4,"images_per_second":1}',
        b'{"provider":"cpu","sessions":2,"threads":1,"batch":0,"images_per_second":1}',
        b'{"provider":"tpu","sessions":2,"threads":1,"batch":4,"images_per_second":1}',
        b'{"provider":["cpu"],"sessions":2,"threads":1,"batch":4,"images_per_second":1}',
        b'{"provider":"cuda","sessions":1,"threads":1,"batch":64,"images_per_second":1}',
    ],
)
def test_a_kept_choice_that_is_none_is_measured_again(busy: Path, kept: bytes) -> None:
    """Damaged, of wrong types, or of a provider that this installation has not: the service starts."""
    assert not onnx.available("cuda"), "this test is for machines without a GPU"
    cache = cache_file(MODEL, "cpu", available_cpus())
    assert cache is not None
    busy.mkdir()
    cache.write_bytes(kept)
    assert calibrated(OPEN).max_batch == 16


def test_with_auto_a_provider_or_a_gpu_that_comes_or_goes_is_noticed(
    monkeypatch: pytest.MonkeyPatch, busy: Path
) -> None:
    """What was chosen without it, or of it, is not taken; a provider that is asked for stays what it is."""
    without = cache_file(MODEL, "auto", 2), cache_file(MODEL, "cpu", 2)
    monkeypatch.setattr(calibration, "_gpus", lambda: ["nvidia0"])
    device = cache_file(MODEL, "auto", 2), cache_file(MODEL, "cpu", 2)
    monkeypatch.setattr(onnx, "available", lambda provider: True)
    both = cache_file(MODEL, "auto", 2), cache_file(MODEL, "cpu", 2)
    assert len({without[0], device[0], both[0]}) == 3
    assert without[1] == device[1] == both[1]


def test_a_cache_that_cannot_be_written_does_not_keep_the_service_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A read-only system calibrates at each start."""
    (tmp_path / "visionai").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibrated(OPEN).workers >= 1
