"""Service level objectives: what a load run must reach, for CI.

    p99=10ms,rps=3000,errors=0

A latency (p50, p90, p99, p999, worst) is an upper bound with its unit, ``us``, ``ms`` or ``s``; ``rps`` and
``goodput`` are lower bounds in right answers per second; ``errors`` (wrong answers count) and ``cpu`` (of the server,
per request, with its unit) are upper bounds. Each is held against the median of the repeats; ``errors`` against the
worst of them, so that none is passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.load import LoadResult

_LATENCIES = ("p50", "p90", "p99", "p999", "worst")
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_TIME = re.compile(r"([0-9.]+)(us|ms|s)")


@dataclass(frozen=True, slots=True)
class Objective:
    """One bound. Times are in milliseconds."""

    name: str
    bound: float
    text: str

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.name in ("rps", "goodput")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an objective came to; `measured` is None where it could not be measured, which is a miss."""

    objective: Objective
    measured: float | None
    met: bool


def parse_slo(text: str) -> list[Objective]:
    """Read objectives.

    Raises:
        ValueError: names what is wrong, and what was expected.
    """
    objectives = []
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        is_time = name in (*_LATENCIES, "cpu")
        if not equals or not (is_time or name in ("rps", "goodput", "errors")):
            raise ValueError(
                f"{part.strip()!r} is not NAME=VALUE with one of {', '.join(_LATENCIES)}, rps, goodput, errors, cpu"
            )
        found = _TIME.fullmatch(value) if is_time else None
        try:
            bound = float(found[1]) * _UNITS[found[2]] if found else float(value)
            if not math.isfinite(bound):  # NaN would be missed, and infinity met, whatever is measured
                raise ValueError
        except ValueError:
            raise ValueError(f"{value!r} is not a number, in {part.strip()!r}") from None
        if is_time and not found:
            raise ValueError(f"{part.strip()!r} needs a unit: us, ms or s")
        objectives.append(Objective(name, bound, part.strip()))
    return objectives


def check_slo(objectives: Sequence[Objective], results: Sequence[LoadResult]) -> list[Outcome]:
    """Hold the repeats of one load against the objectives."""
    outcomes = []
    for objective in objectives:
        values = [_measured(objective.name, result) for result in results]
        known = [value for value in values if value is not None]
        measured = (max if objective.name == "errors" else median)(known) if known else None
        if measured is None:
            met = False
        else:
            met = measured >= objective.bound if objective.at_least else measured <= objective.bound
        outcomes.append(Outcome(objective, measured, met))
    return outcomes


def _measured(name: str, result: LoadResult) -> float | None:
    match name:
        case "rps":
            return result.throughput
        case "goodput":
            return result.goodput
        case "errors":
            return float(result.failed)
        case "cpu":
            cpu = result.server_cpu_per_request_us
            return None if cpu is None else cpu / 1000
    found = float(getattr(result.latency, name))
    # No answers at all are later than any, and NaN has no place in an order.
    return math.inf if math.isnan(found) else found
