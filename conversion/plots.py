"""Plots of a conversion report, as PNG bytes."""

import io
from typing import Any

import matplotlib as mpl
import numpy as np

from conversion.convert import Converted
from conversion.latency import Latencies
from conversion.variants import Variant

mpl.use("agg")
from matplotlib import pyplot as plt


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib in its metadata, the same figures give the same file.
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def parity_plot(converted: Converted) -> bytes:
    """Each probability of the source against that of each precision, on the faces."""
    count = len(converted.variants)
    figure, axes = plt.subplots(1, count, figsize=(4.2 * count, 4), squeeze=False, layout="tight")
    reference = converted.evidence.answers["faces"].ravel()
    for axis, variant in zip(axes[0], converted.variants, strict=True):
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=0)
        axis.scatter(reference, variant.answers.ravel(), s=3, alpha=0.4, linewidths=0)
        axis.set(xlabel="source (Keras)", ylabel=f"ONNX {variant.precision}", xlim=(0, 1), ylim=(0, 1))
        axis.set_title(f"max difference {variant.parity['faces'].max_difference:.1e}")
    return _png(figure)


def latency_plot(latencies: Latencies) -> bytes:
    """Milliseconds per image against the batch size, a line for each precision."""
    figure, axis = plt.subplots(figsize=(6, 4))
    for precision, medians in latencies.items():
        sizes = np.array(list(medians))
        axis.plot(sizes, np.array(list(medians.values())) / sizes, marker="o", label=precision)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="batch size", ylabel="ms per image, one CPU thread", ylim=(0, None))
    axis.legend()
    return _png(figure)


def confusion_plot(variant: Variant) -> bytes:
    """Rows are true classes; each cell is the share of its row."""
    evaluation = variant.evaluation
    if evaluation is None:
        raise ValueError(f"{variant.precision} was not evaluated")
    shares = evaluation.confusion / np.maximum(evaluation.confusion.sum(axis=1, keepdims=True), 1)
    figure, axis = plt.subplots(figsize=(5.5, 5))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(evaluation.labels))
    axis.set_xticks(ticks, evaluation.labels, rotation=45, ha="right")
    axis.set_yticks(ticks, evaluation.labels)
    axis.set(xlabel="answer", ylabel="truth")
    axis.set_title(f"{variant.precision}: {evaluation.accuracy:.2%} of {evaluation.images:,}")
    for row in ticks:
        for column in ticks:
            shade = "white" if shares[row, column] > 0.5 else "black"
            text = f"{shares[row, column]:.2f}"
            axis.text(column, row, text, ha="center", va="center", color=shade, fontsize=8)
    return _png(figure)
