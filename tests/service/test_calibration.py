"""Calibration: what is chosen of what was measured, what is kept, and what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from service.engine import Engine, calibration, onnx, openvino
from service.engine.calibration import Measured, apply, calibrated, choose, layouts, measure
from service.engine.gate import Agreement, Images, compare, drawn_faces
from service.errors import StartupError
from service.images.decode import InputShape
from service.settings import Settings
from tests.service.harness import MODEL, OPEN, ROOT, TIMEOUT


def measured(rate: float, batch: int = 1, sessions: int = 2, threads: int = 1) -> Measured:
    return Measured("cpu", sessions, threads, batch, rate)


def test_the_largest_batch_that_is_nearly_the_fastest_is_chosen() -> None:
    """What a batch costs besides the model is spread over it; fewer sessions must gain half as much again."""
    assert choose([measured(1000, 1), measured(960, 8), measured(940, 16)]).batch == 8
    assert choose([measured(1000, 1), measured(1500, 4), measured(1400, 8)]).batch == 4
    assert choose([measured(1000, 8, sessions=2), measured(2000, 8, sessions=1, threads=2)]).threads == 2
    assert choose([measured(1000, 8, sessions=2), measured(1400, 8, sessions=1, threads=2)]).threads == 1


def test_on_a_gpu_the_smallest_batch_that_is_nearly_the_fastest_is_chosen() -> None:
    """Its batches are not cut into slices: a large one that gains little makes everybody wait longer."""
    rates = {1: 1000, 8: 5800, 32: 6000, 64: 5900}
    assert choose([Measured("cuda", 1, 1, batch, rate) for batch, rate in rates.items()]).batch == 8


def test_a_run_takes_as_long_as_its_batch_and_sessions_say() -> None:
    """Two sessions at 1000 images a second together: each run of four takes 8 ms."""
    assert measured(1000, batch=4).run_ms == pytest.approx(8)


@pytest.mark.parametrize(
    ("cpus", "thorough", "expected"),
    [
        (1, False, [(1, 1)]),
        (4, False, [(4, 1), (1, 4)]),
        (6, True, [(6, 1), (3, 2), (2, 3), (1, 6)]),
    ],
)
def test_layouts_use_every_cpu(cpus: int, thorough: bool, expected: list[tuple[int, int]]) -> None:
    """Sessions times threads is the number of CPUs that the process may use, which is not the host's."""
    assert layouts(cpus, thorough) == expected


def test_what_is_set_is_not_second_guessed() -> None:
    """The choice fills in what is open; a GPU gets one worker whose threads decode."""
    filled = apply(OPEN, measured(1000, 4, sessions=8), cpus=8)
    assert (filled.workers, filled.executors, filled.threads, filled.max_batch) == (8, 0, 1, 4)
    assert calibrated(Settings(executors=-1, workers=3, threads=1, max_batch=5)).executors == 0
    own = Settings(workers=3, executors=2, threads=1, max_batch=5)
    assert apply(own, measured(1000, 4, sessions=8), cpus=8) == own
    gpu = apply(OPEN, Measured("cuda", 1, 1, 64, 9000), cpus=8)
    assert (gpu.provider, gpu.workers, gpu.executors, gpu.max_batch) == ("cuda", 1, 8, 64)


@pytest.mark.parametrize(("workers", "threads"), [(1, 8), (3, 2), (8, 1), (9, 1)])
def test_more_workers_than_sessions_share_the_cpus(workers: int, threads: int) -> None:
    """One session of eight threads was the fastest; workers of eight each would be in each other's way."""
    chosen = Measured("cpu", 1, 8, 16, 9000)
    assert apply(replace(OPEN, workers=workers), chosen, cpus=8).threads == threads


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_asked_for_and_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, provider: str
) -> None:
    """Never a silent fall back to the CPU; the message says what to install."""
    if onnx.available(provider):  # type: ignore[arg-type]
        pytest.fail("this test is for machines without a GPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = Settings(model_path=MODEL, workers=0, provider=provider)  # type: ignore[arg-type]
    with pytest.raises(StartupError, match="onnxruntime-gpu"):
        calibrated(settings)


def test_openvino_that_is_asked_for_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra, and the message says how to install it."""
    monkeypatch.setattr(openvino, "available", lambda: False)
    with pytest.raises(StartupError, match=r"docs/performance\.md"):
        Engine(MODEL, "openvino")


def test_auto_leaves_out_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fastest of those that load and pass; why others are left out is told."""
    monkeypatch.setattr(openvino, "available", lambda: False)
    found = measure(MODEL, "auto", cpus=1)
    assert {each.provider for each in found.measured} == {"cpu"}
    assert set(found.left_out) == {"openvino", "cuda", "tensorrt"}


def test_a_provider_that_fails_the_gate_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With auto it is left out with its figures, asked for it is an error."""
    monkeypatch.setattr(calibration, "compare", lambda *_: Agreement(0.5, 0.4))
    found = measure(MODEL, "auto", cpus=1)
    assert found.chosen.provider == "cpu"
    assert "50.0% of sure answers" in found.left_out["openvino"]
    with pytest.raises(StartupError, match="accuracy gate"):
        measure(MODEL, "openvino", cpus=1)


@pytest.mark.parametrize("batch", [16, 120])
def test_a_provider_that_fails_on_a_batch_is_not_chosen(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Once is enough, as where others hold a GPU's memory: with auto it is left out, asked for it is an error."""
    run = openvino.OpenVINORunner.run
    faults = [RuntimeError("no memory\nin allocator.cc")]

    def run_or_fail(self: openvino.OpenVINORunner, images: Images) -> npt.NDArray[np.float32]:
        if len(images) == batch and faults:
            raise faults.pop()
        return run(self, images)

    monkeypatch.setattr(openvino.OpenVINORunner, "run", run_or_fail)
    monkeypatch.setattr(calibration, "layouts", lambda *_: [(2, 1)])
    with pytest.raises(StartupError, match=f"fails on a batch of {batch}: no memory$"):
        measure(MODEL, "openvino", cpus=2)
    faults.append(RuntimeError("no memory\nin allocator.cc"))
    found = measure(MODEL, "auto", cpus=2)
    assert found.chosen.provider == "cpu"
    assert found.left_out["openvino"].endswith(f"fails on a batch of {batch}: no memory")


def test_the_gate_passes_the_same_and_fails_the_wrong(engine: Engine) -> None:
    """Identical answers pass, and so does rounding; turned images, other colours and no numbers do not."""
    faces = drawn_faces(engine.card.shape)

    def spoilt(spoil: object) -> Agreement:
        assert callable(spoil)
        return compare(engine.run, lambda images: engine.run(np.ascontiguousarray(spoil(images))), faces)

    assert compare(engine.run, engine.run, faces) == Agreement(1.0, 0.0)
    assert spoilt(lambda images: np.clip(images.astype(int) + 1, 0, 255).astype(np.uint8)).passes
    assert not spoilt(lambda images: 255 - images).passes
    assert not spoilt(lambda images: images.swapaxes(1, 2)).passes

    def without_numbers(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        return engine.run(images) * np.float32("nan")

    assert not compare(engine.run, without_numbers, faces).passes


def test_drawn_faces_are_the_same_every_time_and_fit_any_input() -> None:
    """Gray and colour, of any size."""
    for shape in (InputShape(48, 48, "gray"), InputShape(96, 64, "rgb")):
        faces = drawn_faces(shape, 3)
        assert faces.shape == (3, shape.height, shape.width, shape.channels)
        assert faces.dtype == np.uint8
        np.testing.assert_array_equal(faces, drawn_faces(shape, 3))


def test_openvino_says_what_the_cpu_provider_says(engine: Engine) -> None:
    """It passes the gate with the model that ships, in whatever precision this CPU makes it compute."""
    assert compare(engine.run, Engine(MODEL, "openvino").run, drawn_faces(engine.card.shape)).passes


def test_a_gpus_batches_are_filled_up_and_cut_again(engine: Engine) -> None:
    """Bound batches in prepared sizes answer as plain ones do. (The CPU provider stands in for the GPU's.)"""
    runner = onnx.BucketRunner(onnx.open_session(MODEL))
    faces = drawn_faces(engine.card.shape, 9)
    for size in (1, 3, 8, 9):
        np.testing.assert_allclose(runner.run(faces[:size]), engine.run(faces[:size]), atol=1e-5)


def test_each_prepared_batch_is_run_before_the_first_client(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU every bucket up to the largest batch, elsewhere the smallest and the largest."""
    ran: list[int] = []
    bucketed = Engine(MODEL)
    monkeypatch.setattr(Engine, "run", lambda _, images: ran.append(len(images)))
    engine.warm(24)
    assert ran == [1, 24]
    monkeypatch.setattr(bucketed, "_runner", onnx.BucketRunner(onnx.open_session(MODEL)))
    ran.clear()
    bucketed.warm(24)
    assert ran == [1, 2, 4, 8, 16, 24]


def tune(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m service tune`, or what stands in for it."""
    done = subprocess.run(
        [sys.executable, *command, "tune"],
        cwd=folder,
        env=os.environ
        | {"MODEL_PATH": str(MODEL), "XDG_CACHE_HOME": str(folder), "PYTHONPATH": str(ROOT)}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_tune_shows_the_table_and_keeps_the_choice(tmp_path: Path) -> None:
    """What was measured, the choice marked, and the settings that it stands for; meanwhile a bar on a terminal."""
    however_busy = """
import service.__main__, service.engine.calibration, sys
service.engine.calibration.STEADY = 0.0
sys.exit(service.__main__.main())
"""
    done = tune(["-c", however_busy], tmp_path, FORCE_COLOR="1")  # which stands for a terminal
    assert "images/s" in done.stdout
    assert "WORKERS=" in done.stdout
    assert "measuring" in done.stderr
    assert "100%" in done.stderr
    (kept,) = (tmp_path / "visionai").glob("calibration-*.json")
    assert f"kept in {kept}" in done.stdout.replace("\n", "")


# Stands in for what takes seconds.
QUICK = """
import service.__main__, service.engine.calibration as calibration, sys
found = calibration.Measured("cpu", 2, 1, 4, 1000.0)
calibration.measure = lambda *_, **__: calibration.Calibration([found], {}, found)
sys.exit(service.__main__.main())
"""


def test_tune_says_that_the_choice_could_not_be_kept(tmp_path: Path) -> None:
    """And why. Without a terminal there is nothing beside the result."""
    (tmp_path / "visionai").write_text("a file where the folder would be")
    done = tune(["-c", QUICK], tmp_path)
    assert "not kept: " in done.stdout
    assert "File exists" in done.stdout.replace("\n", " ")
    assert "; kept in" not in done.stdout
    assert done.stderr == ""


def test_tune_on_a_busy_machine_keeps_nothing(tmp_path: Path) -> None:
    """As where the service is asked meanwhile: what is chance would hold for all starts from then on."""
    done = tune(["-c", QUICK.replace("1000.0", "1000.0, steadiness=0.3")], tmp_path)
    assert "not kept: the machine is busy" in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []


def test_tune_on_a_full_disk_says_where_the_choice_is(tmp_path: Path) -> None:
    """In one line: what was measured is not lost with the table."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", QUICK, "tune"],
            cwd=tmp_path,
            env=os.environ
            | {"MODEL_PATH": str(MODEL), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    (kept,) = (tmp_path / "visionai").glob("calibration-*.json")
    assert done.returncode == 2
    assert done.stderr == (
        "VisionAI cannot start: the table cannot be printed (No space left on device); "
        f"the choice is kept in {kept}\n"
    )


def test_progress_is_told_from_nothing_to_all() -> None:
    """In the process that asked, of all providers together."""
    told: list[float] = []
    calibration.measure_apart(MODEL, "cpu", 1, thorough=False, progress=told.append)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)
    assert len(set(told)) > 2


# Stands in for a calibration that takes long: it says that it has begun, and computes.
ENDLESS = """
import pathlib, service.__main__, service.engine.calibration, sys
def measure(*_, **__):
    pathlib.Path("begun").touch()
    while True:
        pass
service.engine.calibration.measure = measure
sys.exit(service.__main__.main())
"""


@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ([], signal.SIGINT, 130),
        # Left to the system, SIGTERM would not reach process 1 of a container.
        ([], signal.SIGTERM, 0),
        (["tune"], signal.SIGINT, 130),
        (["tune"], signal.SIGTERM, 128 + signal.SIGTERM),
    ],
)
def test_calibration_ends_with_who_asked_for_it(
    tmp_path: Path, command: list[str], number: signal.Signals, code: int
) -> None:
    """Ctrl-C, which the whole process group gets, and SIGTERM leave neither a traceback nor a process behind."""
    asking = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *command],
        cwd=tmp_path,
        env=os.environ | {"MODEL_PATH": str(MODEL), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "begun").exists():
        assert asking.poll() is None
        time.sleep(0.01)
    measuring = psutil.Process(asking.pid).children()
    try:
        assert measuring
        if number == signal.SIGINT:
            os.killpg(asking.pid, number)
        else:
            asking.send_signal(number)
        assert asking.wait(TIMEOUT) == code
        assert not psutil.wait_procs(measuring, TIMEOUT)[1]
    finally:
        for each in (*measuring, asking):
            with suppress(psutil.NoSuchProcess):
                each.kill()
        log = asking.communicate()[1]
    assert log == ""
