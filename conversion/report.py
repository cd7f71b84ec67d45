"""The report of a conversion: as JSON for machines, as tables for the terminal, as Markdown for an artefact."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from conversion.convert import Converted, manifest_of
from conversion.variants import Variant, speed_ratio

Rows = list[tuple[str, ...]]


def as_json(converted: Converted) -> dict[str, Any]:
    """Return the report as JSON can hold it: each variant's manifest, and what depends on this machine.

    `variants` is by precision; `latency_ms` by precision and batch size; `refused` lists the reasons by
    precision for what was not written.
    """
    variants = {variant.precision: manifest_of(converted, variant) for variant in converted.variants}
    for variant in converted.variants:
        variants[variant.precision]["path"] = str(variant.path)
        variants[variant.precision]["level_difference"] = variant.graph.level_difference
    return {
        "written": [str(variant.path) for variant in converted.variants if not variant.refusals],
        "refused": {v.precision: list(v.refusals) for v in converted.variants if v.refusals}
        | {each.precision: [each.reason] for each in converted.unbuilt},
        "variants": variants,
        "latency_ms": {
            precision: {str(size): round(value, 4) for size, value in medians.items()}
            for precision, medians in converted.latencies.items()
        },
    }


def headline(converted: Converted) -> list[str]:
    """Return the facts that fit in two lines: what was converted, and what the result takes and gives."""
    source, specification, graph = converted.source, converted.specification, converted.shipped.graph
    return [
        f"{source.path.name}: {source.kind}, {source.parameters:,} parameters; opset {specification.opset},"
        f" {graph.nodes} nodes, {len(graph.transposes)} transposes beside convolutions",
        f"input {specification.height}x{specification.width} {specification.color}; source ends in"
        f" {specification.activation}; outputs {', '.join(specification.labels)}",
    ]


def file_rows(converted: Converted) -> tuple[Sequence[str], Rows]:
    """One row per precision: size, accuracy, speed, verdict."""
    header = ("precision", "file", "bytes", "accuracy", "speed", "verdict")
    rows: Rows = []
    for variant in converted.variants:
        accuracy = f"{variant.evaluation.accuracy:.2%}" if variant.evaluation else "not measured"
        speed = (
            f"{speed_ratio(converted.latencies, variant.precision):.2f}x"
            if converted.latencies
            else "not measured"
        )
        verdict = "refused: " + "; ".join(variant.refusals) if variant.refusals else "written"
        rows.append(
            (variant.precision, variant.path.name, f"{len(variant.model):,}", accuracy, speed, verdict)
        )
    for each in converted.unbuilt:
        rows.append(
            (each.precision, each.path.name, "none", *["not measured"] * 2, f"refused: {each.reason}")
        )
    return header, rows


def parity_rows(converted: Converted) -> tuple[Sequence[str], Rows]:
    """One row per precision and set of images: distance from the source."""
    header = ("precision", "images", "count", "max difference", "mean difference", "same top class")
    return header, [
        (
            variant.precision,
            name,
            str(parity.images),
            f"{parity.max_difference:.2e}",
            f"{parity.mean_difference:.2e}",
            f"{parity.agreement:.2%}",
        )
        for variant in converted.variants
        for name, parity in variant.parity.items()
    ]


def latency_rows(converted: Converted) -> tuple[Sequence[str], Rows]:
    """One row per batch size: milliseconds per batch for each precision."""
    precisions = list(converted.latencies)
    sizes: Iterable[int] = converted.latencies[precisions[0]] if precisions else ()
    header = ("batch", *(f"{precision}, ms" for precision in precisions))
    return header, [
        (str(size), *(f"{converted.latencies[p][size]:.3f}" for p in precisions)) for size in sizes
    ]


def _tables(converted: Converted) -> list[tuple[str, Sequence[str], Rows]]:
    tables = [("Files", *file_rows(converted)), ("Parity with the source", *parity_rows(converted))]
    if converted.latencies:
        tables.append(("Latency on one CPU thread", *latency_rows(converted)))
    return tables


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller, where rich would end the program as one that failed."""
        raise BrokenPipeError


def print_report(converted: Converted) -> None:
    """Print the report as tables. Raises OSError where standard output cannot be written."""
    console = _Console(markup=False, highlight=False, soft_wrap=False)
    for line in headline(converted):
        console.print(line, soft_wrap=True)
    for title, header, rows in _tables(converted):
        # A long file name goes on in the next line.
        columns = [Column(name, overflow="fold") for name in header]
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def report_files(converted: Converted, folder: Path) -> dict[Path, bytes]:
    """Return `report.md` and its plots, by their paths in `folder`."""
    from conversion.plots import confusion_plot, latency_plot, parity_plot

    plots = {"parity.png": parity_plot(converted)}
    if converted.latencies:
        plots["latency.png"] = latency_plot(converted.latencies)
    for variant in converted.variants:
        if variant.evaluation is not None:
            plots[f"confusion-{variant.precision}.png"] = confusion_plot(variant)
    files = {folder / name: content for name, content in plots.items()}
    return files | {folder / "report.md": _markdown(converted, list(plots)).encode()}


def _markdown(converted: Converted, plots: list[str]) -> str:
    lines = [f"# {converted.specification.version_tag}: conversion report", ""]
    lines += [f"{line}  " for line in headline(converted)]
    for title, header, rows in _tables(converted):
        lines += ["", f"## {title}", "", _row(header), _row(["---"] * len(header)), *map(_row, rows)]
    for variant in converted.variants:
        lines += ["", f"## Graph of {variant.precision}", "", _operations(variant)]
    lines += ["", "## Plots", "", *(f"![{name.removesuffix('.png')}]({name})" for name in plots)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _operations(variant: Variant) -> str:
    counted = ", ".join(f"{count} {operation}" for operation, count in variant.graph.operations.items())
    levels = f"{variant.graph.level_difference:.1e}"
    return f"{counted}. Largest difference between ONNX Runtime's optimisation levels: {levels}."
