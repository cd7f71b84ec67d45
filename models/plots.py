"""Pictures for the model card: training curves and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

# Chosen before pyplot: drawing must work without a display.
matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from numpy.typing import NDArray

from conversion.atomic import check_writable
from conversion.errors import ConversionError


def check_picture(path: Path) -> None:
    """Raise ValueError where no picture can be drawn into `path`: before hours of work, not after."""
    # .pgf is drawn by LaTeX, which may be missing, or lack a package.
    kinds = FigureCanvasBase.get_supported_filetypes().keys() - {"pgf"}
    if path.suffix.removeprefix(".").lower() not in kinds:
        raise ValueError(
            f"{path}: name it by a kind of picture, such as .png (known: {', '.join(sorted(kinds))})"
        )
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: no such folder")
    try:
        check_writable(path)
    except ConversionError as error:
        raise ValueError(str(error)) from None


def plot_confusion(confusion: NDArray[np.int64], labels: Sequence[str], path: Path) -> None:
    """Draw counts int64 [k, k] (rows true, columns predicted) as shares of each row, into a PNG at `path`."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*confusion.shape):
        text = f"{shares[row, column]:.2f}\n({confusion[row, column]})"
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=35)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("FER+ majority")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_curves(history: Sequence[dict[str, float]], names: Sequence[str], path: Path) -> None:
    """Draw training loss and validation accuracy over epochs for each network of a run, into a PNG at `path`."""
    epochs = [figures["epoch"] for figures in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in names:
        left.plot(epochs, [figures[f"{name}_loss"] for figures in history], label=f"{name}, train")
        left.plot(
            epochs,
            [figures[f"{name}_cross_entropy"] for figures in history],
            "--",
            label=f"{name}, validation",
        )
        right.plot(epochs, [figures[f"{name}_accuracy"] for figures in history], label=name)
    left.set(xlabel="epoch", ylabel="cross-entropy")
    right.set(xlabel="epoch", ylabel="FER+ accuracy on validation (averaged weights)")
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_pareto(points: Sequence[tuple[str, float, float]], path: Path) -> None:
    """Draw (name, milliseconds per face, accuracy in 0..1) of each variant into a PNG at `path`; time is on a
    logarithmic axis, and the legend goes from the fastest to the slowest."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]  # a listed colour map has them
    for number, (name, milliseconds, accuracy) in enumerate(points):
        axes.plot(milliseconds, accuracy, "o", color=colours[number % len(colours)], label=name)
    axes.set(xlabel="ms per face, one core", ylabel="FER+ accuracy on validation", xscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
