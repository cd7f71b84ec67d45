"""Plots, as SVG text that a page can hold. matplotlib is the extra `bench`."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.compare import Paired
from benchmarks.profile import WORK, Profile
from benchmarks.spread import spread
from benchmarks.sweep import Sweep

# The salt makes the same figures the same bytes; text stays text, which is a quarter of the size.
_LOOK = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "visionai",
    "svg.fonttype": "none",
}
mpl.rcParams.update(_LOOK)  # type: ignore[arg-type]

_BLUE, _RED, _GRAY = "#2b6cb0", "#c05621", "#a0aec0"


def _svg(figure: Figure, name: str) -> str:
    """The figure as text; its ids begin with `name`, since matplotlib's are the same in each and a page has several."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    return re.sub(r'( id="|href="#|url\(#)', rf"\1{name}-", text[text.index("<svg") :])


def plot_sweep(sweep: Sweep) -> str:
    """Latency against throughput: percentiles over rates, and the closed loop's clients."""
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    open_rates = [point.throughput for point in sweep.open]
    for name, color in (("p50", _BLUE), ("p99", _RED)):
        left.plot(open_rates, [getattr(p.latency, name) for p in sweep.open], "o-", color=color, label=name)
    if (knee := sweep.knee) is not None:
        left.axvline(knee.throughput, color=_GRAY, linestyle="--")
        left.annotate(
            f" knee {knee.throughput:,.0f}/s", (knee.throughput, left.get_ylim()[0]), color="#4a5568"
        )
    _label(left, f"open loop, Poisson arrivals ({sweep.size})")
    closed_rates = [point.throughput for point in sweep.closed]
    for name, color in (("p50", _BLUE), ("p99", _RED)):
        values = [getattr(point.latency, name) for point in sweep.closed]
        right.plot(closed_rates, values, "o-", color=color, label=name)
    for point in sweep.closed:
        right.annotate(f" {point.clients}", (point.throughput, point.latency.p50), fontsize=7)
    _label(right, "closed loop, by number of clients")
    return _svg(figure, "sweep")


def _label(axes: Axes, title: str) -> None:
    axes.set_yscale("log")
    axes.set_xlabel("answers per second")
    axes.set_ylabel("latency, ms")
    axes.set_title(title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)


def plot_shares(series: Sequence[Sequence[Paired]]) -> str:
    """The service as a share of the limit, with the range over repeats."""
    figure = Figure(figsize=(7, 0.5 + 0.38 * len(series)), layout="constrained")
    axes = figure.subplots()
    for index, pairs in enumerate(series):
        shares = [pair.share for pair in pairs if pair.share is not None]
        if not shares:
            axes.text(0.01, index, "-", va="center")
            continue
        found = spread(shares)
        axes.barh(index, found.median, color=_BLUE, height=0.6)
        axes.plot([found.low, found.high], [index, index], color="black", linewidth=1)
        axes.text(0.01, index, f"{found.median:.0%}", va="center", color="white")
    names = [
        f"{first.size}{'' if first.detect == 'never' else ' + detection'}, {first.clients} clients"
        for first in (pairs[0].load for pairs in series)
    ]
    axes.set_yticks(range(len(series)), names)
    axes.invert_yaxis()
    axes.axvline(1.0, color=_GRAY, linestyle="--")
    axes.set_xlabel("throughput as a share of the limit that the generator leaves")
    return _svg(figure, "shares")


def plot_profile(found: Profile) -> str:
    """The hot path by stage."""
    stages = sorted(found.stages.items(), key=lambda item: -item[1])
    figure = Figure(figsize=(7, 0.5 + 0.26 * len(stages)), layout="constrained")
    axes = figure.subplots()
    for index, (stage, cost) in enumerate(stages):
        axes.barh(index, cost, color=_GRAY if stage in WORK else _BLUE, height=0.7)
        axes.text(cost, index, f" {cost:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(stages)), [stage for stage, _ in stages])
    axes.invert_yaxis()
    axes.set_xlabel("CPU µs per request (gray: the work itself)")
    return _svg(figure, "profile")
