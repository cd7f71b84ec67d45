"""Where and with what the figures were measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.target import ROOT
from service.cpus import available_cpus
from service.engine import Engine
from service.modelfile import resolve_model

_PACKAGES = (
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
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
        "packages": {name: version(name) for name in _PACKAGES},
        "commit": _commit(),
    }


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
