"""The report of a conversion: for machines and for the terminal."""

import hashlib
from typing import Any

from rich.console import Console
from rich.table import Table

from conversion.convert import Converted


def as_json(converted: Converted) -> dict[str, Any]:
    """Return the report as JSON can hold it."""
    source = converted.source
    return {
        "output": str(converted.output),
        "model_sha256": hashlib.sha256(converted.model).hexdigest(),
        "bytes": len(converted.model),
        "source": source.path.name,
        "source_sha256": source.sha256,
        "kind": source.kind,
        "parameters": source.parameters,
        "specification": converted.specification.as_dict(),
        "graph": {"nodes": converted.graph.nodes, "operations": converted.graph.operations},
        "parity": {name: parity.as_dict() for name, parity in converted.parity.items()},
    }


def print_report(converted: Converted) -> None:
    """Print the report as tables."""
    console = Console()
    source, specification = converted.source, converted.specification
    print(
        f"{source.path.name} ({source.kind}, {source.parameters:,} parameters)"
        f" -> {converted.output} ({len(converted.model):,} bytes, opset {specification.opset},"
        f" {converted.graph.nodes} nodes)"
    )
    print(
        f"input {specification.height}x{specification.width} {specification.color},"
        f" outputs {', '.join(specification.labels)}, source ends in {specification.activation}"
    )
    table = Table("images", "count", "max difference", "mean difference", "same top class")
    for name, parity in converted.parity.items():
        table.add_row(
            name,
            str(parity.images),
            f"{parity.max_difference:.2e}",
            f"{parity.mean_difference:.2e}",
            f"{parity.agreement:.2%}",
        )
    console.print(table)
