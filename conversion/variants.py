"""One precision of a converted model, and the gate that decides whether it ships."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from conversion import metadata
from conversion.checks import GraphSummary, check_graph
from conversion.evaluation import Evaluation, evaluate
from conversion.evidence import Evidence, Stage
from conversion.images import Probabilities
from conversion.latency import Latencies
from conversion.onnxfile import serialise
from conversion.parity import Parity, Thresholds, compare, failures
from conversion.second_look import look_twice_where_unsure
from conversion.sessions import open_session, run

_LEVEL_IMAGES = 16
# Fused integer kernels of ONNX Runtime round once where the unfused graph rounds twice: in INT8 a level may
# move an activation by one step, which a probability shows far above float rounding.
_LEVEL_TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.25}

# The batch sizes that a CPU service runs: batching by itself, small.
GATED_BATCHES = (1, 4, 8)


@dataclass(frozen=True, slots=True)
class Variant:
    """A model at one precision, with what was measured of it.

    `parity` is by set of images; `answers` are those to the faces. `refusals` are the reasons not to ship it:
    empty when it ships.
    """

    precision: str
    path: Path
    model: bytes
    metadata: Mapping[str, str]
    graph: GraphSummary
    parity: Mapping[str, Parity]
    answers: Probabilities
    evaluation: Evaluation | None
    thresholds: Thresholds
    refusals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """A further precision of which no model came about, and why."""

    precision: str
    path: Path
    reason: str


def measure_variant(
    model: onnx.ModelProto,
    precision: str,
    path: Path,
    entries: Mapping[str, str],
    evidence: Evidence,
    thresholds: Thresholds,
    sets: Sequence[str],
    stage: Stage,
) -> Variant:
    """Put a second look into a branch, and metadata into the model; check its graph and run it on the evidence. Raises
    GraphError.

    `sets` are the sets of images, of those in `evidence`, on which it is compared with its source.
    """
    model = look_twice_where_unsure(model)
    metadata.write(model, entries)
    tolerance = max(_LEVEL_TOLERANCE[precision], thresholds.max_difference)
    graph = check_graph(model, evidence.images["faces"][:_LEVEL_IMAGES], tolerance)
    serialised = serialise(model)
    session = open_session(serialised)
    answers = {name: run(session, evidence.images[name]) for name in sets}
    parity = {name: compare(evidence.answers[name], answers[name]) for name in sets}
    evaluation = None
    if evidence.labelled is not None:
        advance = stage(f"evaluate {precision}", len(evidence.labelled.images))
        evaluation = evaluate(serialised, evidence.labelled, advance)
    return Variant(
        precision, path, serialised, entries, graph, parity, answers["faces"], evaluation, thresholds
    )


def parity_failures(variant: Variant) -> list[str]:
    """Return the broken thresholds of a variant, in words."""
    return [
        f"{name} images: {failure}"
        for name, parity in variant.parity.items()
        for failure in failures(parity, variant.thresholds)
    ]


def gate(variant: Variant, shipped: Variant, latencies: Latencies, max_accuracy_drop: float) -> Variant:
    """Return `variant` with its refusals: why it may not ship beside `shipped`, the fp32 model.

    A smaller precision must keep the parity bounds and lose at most `max_accuracy_drop` (in points, that is
    hundredths) on the evaluation set. INT8 must also have been evaluated, and be faster on this machine.
    """
    refusals = parity_failures(variant)
    if variant.evaluation is not None and shipped.evaluation is not None:
        drop = (shipped.evaluation.accuracy - variant.evaluation.accuracy) * 100
        if drop > max_accuracy_drop:
            refusals.append(f"accuracy drops by {drop:.2f} points, more than {max_accuracy_drop:g}")
    elif variant.precision == "int8":
        refusals.append("accuracy was not measured; give labelled faces with --evaluation")
    if variant.precision == "int8":
        speedup = speed_ratio(latencies, variant.precision)
        if not speedup > 1:
            sizes = ", ".join(str(size) for size in GATED_BATCHES)
            refusals.append(f"not faster here: {speedup:.2f} times the speed of fp32 (batches of {sizes})")
    return replace(variant, refusals=tuple(refusals))


def speed_ratio(latencies: Latencies, precision: str) -> float:
    """Return how many times as fast as the first, the shipped model, a precision is: the geometric mean over
    `GATED_BATCHES`.
    """
    shipped = next(iter(latencies.values()))
    ratios = [shipped[size] / latencies[precision][size] for size in GATED_BATCHES]
    return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
