"""Raising the opset of a model: allowed where every node means the same at the new version, else refused with the node.

Between two versions of an op the schema may have changed. ``PURE_SUPERSETS`` lists the ops whose versions from opset 11 to 17
were reviewed and only add to what there was: element types, or an attribute or input whose absence means what was meant
before. What is not listed has changed its meaning (Softmax and its default axis at 13, RoiAlign and its coordinates at 16), or
its form (Squeeze, Unsqueeze, Split and ReduceSum take an input for an attribute from 13 on), or was not looked at.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import onnx

from rewright.model.elements import normal_domain
from rewright.model.graph import state_of
from rewright.model.view import FIRST_IR_WITH_OPTIONAL_INPUT_LISTING, View

_TYPES: Final = "more element types"

REVIEWED_FROM: Final = 11
REVIEWED_UP_TO: Final = 17

PURE_SUPERSETS: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            *("Abs", "Ceil", "Exp", "Floor", "IsNaN", "Log", "Neg", "NonZero", "Reciprocal", "Relu", "Sigmoid", "Sign"),
            *("Sqrt", "Tanh", "LeakyRelu", "PRelu"),
            *("Add", "Sub", "Mul", "Div", "Mod", "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "MatMul", "Gemm"),
            *("Sum", "Mean", "Where", "Cast", "Concat", "DepthToSpace", "SpaceToDepth", "Expand", "Flatten", "Gather"),
            *("GatherElements", "Size", "Tile", "Transpose", "CumSum", "LRN", "MeanVarianceNormalization"),
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
            "ReduceSumSquare",
        ),
        _TYPES,
    ),
    "Identity": "sequences and optional values too",
    "If": "branches may give sequences and optional values too",
    "Loop": "sequences and optional values may be carried too",
    "Scan": _TYPES,
    "Shape": "start and end, whose defaults take the whole shape",
    "Reshape": "allowzero, whose default 0 copies the dimension as before",
    "ScatterElements": "reduction, whose default is none",
    "ScatterND": "reduction, whose default is none",
    "ArgMax": "select_last_index, whose default 0 takes the first as before",
    "ArgMin": "select_last_index, whose default 0 takes the first as before",
    "GatherND": "batch_dims, whose default is 0",
    "Constant": "value_float and its like beside value",
    "Max": _TYPES,
    "Min": _TYPES,
    "Pow": "an exponent of another type too",
    "Clip": _TYPES,
    "Slice": _TYPES,
    "Pad": _TYPES,
    "MaxPool": _TYPES,
    "Resize": "roi and scales may be omitted",
    "GRU": "layout, whose default 0 is the one there was",
    "LSTM": "layout, whose default 0 is the one there was",
    "RNN": "layout, whose default 0 is the one there was",
    "LayerNormalization": "ONNX Runtime's own op of that name and meaning, which became standard",
    "BatchNormalization": "training_mode, whose default is 0; with one output it was inference before too",
}
"""Op -> what its later versions add."""

_ONE_OUTPUT: Final = frozenset({"BatchNormalization"})


def obstacle(view: View, version: int) -> str | None:
    """The first thing that forbids raising the model, its bodies and functions, to ``version`` of the standard domain."""
    if version > REVIEWED_UP_TO:
        return f"the changes after opset {REVIEWED_UP_TO} were not reviewed"
    if (view.graph.ir_version or 0) < FIRST_IR_WITH_OPTIONAL_INPUT_LISTING:
        return f"the model's IR version is {view.graph.ir_version}, where every initializer is an input as well"
    for graph in view.graphs():
        current = view.opset_of(graph)
        if current >= version or not current:
            continue
        if current < REVIEWED_FROM:
            return f"the changes before opset {REVIEWED_FROM} were not reviewed, and the model is at {current}"
        for node in graph.nodes:
            if not normal_domain(node.domain) and not _means_the_same(node, current, version):
                return f"{node.op} '{node.name}' would mean something else at opset {version}"
    return None


def raise_to(view: View, version: int) -> None:
    """Lets the model and its functions import ``version``; ``obstacle`` must have found nothing."""
    owners: list[dict[str, int]] = [view.opsets, *(state_of(function).opsets or {} for function in view.functions)]
    for opsets in owners:
        if 0 < opsets.get("", 0) < version:
            opsets[""] = version
    for graph in (view.graph, *view.functions):
        for entry in graph.import_domains or ():
            if not normal_domain(entry.domain) and entry.version < version:
                entry.version = version
    needed = onnx.helper.OP_SET_ID_VERSION_MAP[("ai.onnx", version)]
    view.graph.ir_version = max(view.graph.ir_version, needed)


def _means_the_same(node: Any, current: int, version: int) -> bool:
    if _since(node.op, current) == _since(node.op, version):
        return True  # that includes ONNX Runtime's own ops, which follow no opset
    named = sum(bool(tensor.name) for tensor in node.outputs)
    return node.op in PURE_SUPERSETS and (node.op not in _ONE_OUTPUT or named == 1)


@lru_cache(maxsize=1024)
def _since(op: str, version: int) -> int:
    """The version of the op that an opset has; 0 if it has none."""
    try:
        return int(onnx.defs.get_schema(op, version, "").since_version)
    except onnx.defs.SchemaError:
        return 0
