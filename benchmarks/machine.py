"""Where and with what the figures were measured."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from dotenv import dotenv_values

from benchmarks.target import ROOT, SET_BY_US
from service.engine import Engine
from service.errors import StartupError
from service.modelfile import resolve_model
from service.processes.cpus import available_cpus
from service.settings import Settings

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "onnxruntime-gpu",
    "opencv-python-headless",
    "openvino",
    "orjson",
    "pybase64",
    "simplejpeg",
    "sqlalchemy",
    "uvloop",
    "websockets",
)


def describe_machine(model: Path) -> dict[str, Any]:
    """Processor, memory, versions, the model and the commit; and how busy the machine was with something else."""
    card = Engine(resolve_model(model, "--model")).card
    return {
        "moment": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "cpus": available_cpus(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load_average_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "model": {
            "file": card.path.name,
            "version": card.version_tag,
            "parameters": card.parameters,
            "input": f"{card.shape.width}x{card.shape.height} {card.shape.color}",
            "precision": card.precision,
        },
        "packages": _versions(),
        "commit": _commit(),
    }


def describe_service() -> dict[str, str]:
    """The service's variables that are set, where it is started: in the environment, or in `.env` for what that leaves
    open. And PROVIDER in any case. Not those that the benchmark sets itself; a secret is not shown."""
    try:
        given = {**dotenv_values(ROOT / ".env"), **os.environ}
    except (OSError, UnicodeDecodeError) as exc:
        raise StartupError(f"{ROOT / '.env'} cannot be read: {exc}") from None
    found: dict[str, str] = {"PROVIDER": Settings().provider}
    for setting in fields(Settings):
        name = setting.name.upper()
        if name not in SET_BY_US and (value := given.get(name)) is not None:
            found[name] = value if setting.repr else "(not shown)"
    return found


def _versions() -> dict[str, str]:
    """Of what is installed: one of the two onnxruntimes, and OpenVINO by choice."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    """The model by its name, where the system tells; on Linux with the instruction sets that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    extras = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return " ".join([fields.get("model name", platform.machine()), *extras])


def _commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
