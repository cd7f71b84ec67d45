"""What suits this machine and this model: provider, sessions, threads per session, size of a batch. Measured, not
guessed.

`measure` runs the model in every combination on offer, `choose` decides, and `calibrated` does both once per machine
and model: the result is kept in the user's cache folder. Calibration runs in a process of its own, so that the memory
and the threads of its sessions are gone before the workers are forked.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import onnxruntime  # after `service.engine`, which forbids it telemetry: this module's package comes first
import orjson

from service.engine import Engine, onnx, openvino
from service.engine.gate import Agreement, Images, compare, drawn_faces
from service.errors import StartupError
from service.modelfile import resolve_model
from service.processes.apart import Progress, ignore_progress, run_apart
from service.processes.cpus import available_cpus
from service.settings import ON_GPU, Provider, ProviderSetting, Settings

log = logging.getLogger(__name__)

#: Batches within this share of the best throughput count as equally fast. On a CPU the largest of them is chosen: what
#: a batch costs besides the model is not measured here, and how long one holds up the others is the executor's to bound
#: (`service.batching.executors.SLICE`). On a GPU the smallest: a large batch that gains little makes everybody wait
#: longer.
NEARLY = 0.95

#: Fewer sessions of more threads each must be faster by this: what is round a run (decoding, sockets, JSON) is spread
#: over sessions only.
WORTH_FEWER_SESSIONS = 1.5

#: A choice whose rounds differ by more than this is chance: it is neither used nor kept.
STEADY = 0.7

# Looks at each combination, of which the best counts: what disturbs the machine only ever slows down.
_ROUNDS = 3
_QUICK_SECONDS, _THOROUGH_SECONDS = 0.01, 0.2
_QUICK_BATCHES, _THOROUGH_BATCHES = (1, 4, 16), (1, 2, 4, 8, 16, 32)
_GPU_BATCHES = (1, 8, 32, 64)

# A part of the cache's key, to be raised when what is measured or how it is decided changes.
_FORMAT = 2

_ALL: tuple[Provider, ...] = get_args(Provider)


@dataclass(frozen=True, slots=True)
class Measured:
    """Throughput of the model alone: `sessions` runs of `batch` images at a time, each computed by `threads`.

    `steadiness` is the lowest rate of the rounds over the highest: far below 1, the machine was busy otherwise.
    """

    provider: Provider
    sessions: int
    threads: int
    batch: int
    images_per_second: float
    steadiness: float = 1.0

    @property
    def run_ms(self) -> float:
        """How long one run takes, in milliseconds."""
        return self.sessions * self.batch / self.images_per_second * 1000


@dataclass(frozen=True, slots=True)
class Calibration:
    """All that was measured, why providers were left out, what was chosen, and how the gate found those that passed."""

    measured: list[Measured]
    left_out: dict[str, str]
    chosen: Measured
    agreements: dict[str, Agreement] = field(default_factory=dict)


def choose(measured: Sequence[Measured]) -> Measured:
    """The fastest provider in as many sessions as pay, and there the batch that is nearly as fast as any."""
    first = max(measured, key=_worth)
    rivals = [e for e in measured if (e.provider, e.sessions) == (first.provider, first.sessions)]
    best = max(each.images_per_second for each in rivals)
    near = [each for each in rivals if each.images_per_second >= NEARLY * best]
    return (min if first.provider in ON_GPU else max)(near, key=lambda each: each.batch)


def _worth(each: Measured) -> float:
    """What a combination is worth, so that one with fewer sessions must be much faster."""
    return each.images_per_second / (WORTH_FEWER_SESSIONS if each.threads > 1 else 1)


def layouts(cpus: int, thorough: bool) -> list[tuple[int, int]]:
    """Sessions x threads that use all CPUs: one thread each, all in one, and, when thorough, what is between."""
    quick = [(cpus, 1)] if cpus == 1 else [(cpus, 1), (1, cpus)]
    if not thorough:
        return quick
    return [(cpus // threads, threads) for threads in range(1, cpus + 1) if cpus % threads == 0]


def measure(
    path: Path,
    setting: ProviderSetting,
    cpus: int,
    progress: Progress = ignore_progress,
    *,
    thorough: bool = False,
) -> Calibration:
    """Measure what a provider, or with ``auto`` each that loads, makes of this machine.

    Raises:
        StartupError: the provider that was asked for cannot be used; says why.
    """
    reference = Engine(path)
    faces = drawn_faces(reference.card.shape)
    measured: list[Measured] = []
    left_out: dict[str, str] = {}
    agreements: dict[str, Agreement] = {}
    providers = _ALL if setting == "auto" else (setting,)
    for number, provider in enumerate(providers):
        progress(number / len(providers))
        if setting == "auto" and not _is_installed(provider):
            left_out[provider] = "not installed"
            continue
        try:
            if provider != "cpu":
                agreement = compare(reference.run, partial(_run, Engine(path, provider)), faces)
                if not agreement.passes:
                    raise StartupError(f"PROVIDER={provider} does not pass the accuracy gate: {agreement}")
                agreements[provider] = agreement
            found = []
            for share, each in _measure_provider(path, provider, cpus, thorough):
                found.append(each)
                progress((number + share) / len(providers))
            measured += found
        except StartupError as exc:
            if setting != "auto" or provider == "cpu":  # what all others are held against
                raise
            left_out[provider] = str(exc)
    return Calibration(measured, left_out, choose(measured), agreements)


def _is_installed(provider: Provider) -> bool:
    return openvino.available() if provider == "openvino" else onnx.available(provider)


def _measure_provider(
    path: Path, provider: Provider, cpus: int, thorough: bool
) -> Iterator[tuple[float, Measured]]:
    """Each combination, and what share of them is done with it."""
    seconds = _THOROUGH_SECONDS if thorough else _QUICK_SECONDS
    batches: tuple[int, ...] = _THOROUGH_BATCHES if thorough else _QUICK_BATCHES
    if provider in ON_GPU:
        batches = _GPU_BATCHES
    shapes = [(1, 1)] if provider in ON_GPU else layouts(cpus, thorough)
    for position, (sessions, threads) in enumerate(shapes):
        # One session with threads of its own computes one run at a time, so there are as many of these.
        engines = [
            Engine(path, provider, threads, sessions if threads == 1 else 1)
            for _ in range(sessions if threads > 1 else 1)
        ]
        for done, batch in enumerate(batches, 1 + position * len(batches)):
            rates = [
                _throughput([engines[number % len(engines)] for number in range(sessions)], batch, seconds)
                for _ in range(_ROUNDS)
            ]
            found = Measured(provider, sessions, threads, batch, max(rates), min(rates) / max(rates))
            yield done / (len(shapes) * len(batches)), found


def _throughput(engines: Sequence[Engine], batch: int, seconds: float) -> float:
    """Images per second of one caller per engine, all at the same time.

    Raises:
        StartupError: one of them failed.
    """
    shape = engines[0].card.shape
    images = np.zeros((batch, shape.height, shape.width, shape.channels), np.uint8)
    barrier = threading.Barrier(len(engines))

    def rate(engine: Engine) -> float:
        barrier.wait()  # before whatever may fail: nobody waits for one that has
        _run(engine, images)
        begun = time.perf_counter()
        runs = 0
        while (took := time.perf_counter() - begun) < seconds or not runs:
            _run(engine, images)
            runs += 1
        return runs * batch / took

    with ThreadPoolExecutor(len(engines)) as callers:
        return sum(callers.map(rate, engines))


def _run(engine: Engine, images: Images) -> npt.NDArray[np.float32]:
    try:
        return engine.run(images)
    except Exception as exc:  # ONNX Runtime's exceptions share no narrower base
        raise StartupError(
            f"{engine.provider} fails on a batch of {len(images)}: {onnx.first_line(exc)}"
        ) from exc


# For the service


def calibrated(settings: Settings, current: Settings | None = None) -> Settings:
    """Fill in what is left open: from the cache, or measured now.

    Where the machine is too busy to tell, there is a session for each CPU. With `current`, which is served meanwhile,
    it is busy with that: it is measured only where another provider than the CPU's may be used, since the model must
    pass the accuracy gate on it; nothing is kept; and as long as the provider stays, what `current` has stays. The next
    start measures.

    Raises:
        StartupError: the model or the provider that was asked for cannot be used.
    """
    if settings.provider == "cpu" and settings.workers and settings.max_batch and settings.threads:
        return replace(settings, executors=max(0, settings.executors))
    path = resolve_model(settings.model_path)
    cpus = available_cpus()
    cache = cache_file(path, settings.provider, cpus)
    chosen = _read(cache)
    if chosen is None and current is not None:
        chosen = _beside(current, path, settings.provider, cpus)
    elif chosen is None:
        chosen = measure_apart(path, settings.provider, cpus, thorough=False).chosen
        if chosen.steadiness < STEADY:
            chosen = _without_rates(chosen, cpus)
            log.info("the machine is busy: calibration would be wrong, and is done again at the next start")
        elif reason := keep(cache, chosen):
            log.info("calibration is not kept: %s", reason)
    return apply(settings, chosen, cpus)


def _beside(current: Settings, path: Path, setting: ProviderSetting, cpus: int) -> Measured:
    """What to use for a model beside what is served: rates are chance, which providers work is not."""
    provider = current.provider
    assert provider != "auto"
    kept = Measured(provider, current.workers, current.threads, current.max_batch, math.nan)
    if setting == "cpu" or (setting == "auto" and provider == "cpu"):
        return kept if provider == "cpu" else _without_rates(replace(kept, provider="cpu"), cpus)
    found = measure_apart(path, setting, cpus, thorough=False)
    if any(each.provider == provider for each in found.measured):
        return kept
    return _without_rates(found.chosen, cpus)


def _without_rates(chosen: Measured, cpus: int) -> Measured:
    """What to use where the rates are chance."""
    if chosen.provider in ON_GPU:
        return chosen
    # The largest batch of those that a calibration tries: for how long one holds up others a slice decides.
    return Measured(chosen.provider, cpus, 1, max(_QUICK_BATCHES), math.nan)


def apply(settings: Settings, chosen: Measured, cpus: int) -> Settings:
    """What was chosen, where the settings leave it open.

    On a CPU each session is a worker's, which works inline: no hand-over between threads, no waiting for the GIL. A GPU
    is fed by one worker whose threads decode. Windows cannot share a listening socket among event loops.
    """
    one_worker = chosen.provider in ON_GPU or sys.platform == "win32"
    workers = settings.workers or (1 if one_worker else chosen.sessions)
    executors = (cpus if one_worker else 0) if settings.executors < 0 else settings.executors
    return replace(
        settings,
        provider=chosen.provider,
        workers=workers,
        executors=executors,
        # Those of fewer sessions than there are workers would be more than there are CPUs.
        threads=settings.threads or min(chosen.threads, max(1, cpus // workers)),
        max_batch=settings.max_batch or chosen.batch,
    )


def measure_apart(
    path: Path, setting: ProviderSetting, cpus: int, *, thorough: bool, progress: Progress = ignore_progress
) -> Calibration:
    """`measure`, in a process of its own.

    Raises:
        StartupError: as `measure`, or the process ended.
    """
    return run_apart(
        partial(measure, path, setting, cpus, thorough=thorough),
        unfinished="calibration ended without a result; set PROVIDER=cpu, WORKERS, THREADS and MAX_BATCH to do without",
        progress=progress,
    )


def cache_file(path: Path, setting: ProviderSetting, cpus: int) -> Path | None:
    """Where the choice for this model on this machine is kept; None for a user without a home, as in a container.

    Raises:
        StartupError: the model cannot be read.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    try:
        model = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as exc:  # it was there a moment ago: it is being replaced
        raise StartupError(f"{path} cannot be read: {exc.strerror}") from None
    versions = [
        onnxruntime.__version__,  # whatever the package is called: onnxruntime-gpu stands in for onnxruntime
        metadata.version("openvino") if openvino.available() else None,
    ]
    # What "auto" may choose from. The package for a GPU has the same version as the one for none.
    offered = [[each for each in _ALL if _is_installed(each)], _gpus()] if setting == "auto" else []
    what = orjson.dumps([_FORMAT, model, setting, cpus, _processor(), *versions, *offered])
    return root / "visionai" / f"calibration-{hashlib.sha256(what).hexdigest()[:20]}.json"


def keep(cache: Path | None, chosen: Measured) -> str | None:
    """Remember a choice, if there is a folder that can be written. Returns why it is not kept; None where it is."""
    if cache is None:
        return "the user has no home, and XDG_CACHE_HOME is not set"
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_suffix(f".{os.getpid()}")
        draft.write_bytes(orjson.dumps(asdict(chosen)))
        draft.replace(cache)  # whole or not at all: two services may start at once
    except OSError as exc:
        return f"{cache.parent} cannot be written: {exc.strerror}"
    return None


def _read(cache: Path | None) -> Measured | None:
    if cache is None:
        return None
    try:
        kept = Measured(**orjson.loads(cache.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None  # not measured yet, or damaged: it is measured again
    counts = (kept.sessions, kept.threads, kept.batch)
    is_whole = kept.provider in _ALL and all(type(count) is int and count > 0 for count in counts)
    return kept if is_whole and _is_installed(kept.provider) else None


def _gpus() -> list[str]:
    """Devices of NVIDIA's that this process, or its container, is given; on Linux only."""
    return sorted(each.name for name in ("nvidia[0-9]*", "dxg") for each in Path("/dev").glob(name))


def _processor() -> str:
    """What the processor is called; two that are called alike are alike."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("vendor_id", "model name", "cpu family", "model", "flags", "Features", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.split("\t")[0].strip() in wanted))
