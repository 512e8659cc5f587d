"""Whole models: parts one after another, then inputs, outputs and declarations around them; and inputs that fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final, Literal

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper

from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.testing.strategies import (
    activations,
    arithmetic,
    attention,
    elementwise,
    embeddings,
    layout,
    nesting,
    normalizations,
    products,
    rotary,
)
from rewright.testing.strategies.writer import BOOL, FLOATS, LOCAL, Part, Sizes, Value, Writer, declaration
from rewright.verify.inputs import DEFAULT_COUNT, make_input_sets

DType = Literal["float32", "float16", "float64"]

ROOMS: Final[Mapping[str, Mapping[str, Part]]] = {
    "elementwise": elementwise.PARTS,
    "products": products.PARTS,
    "layout": layout.PARTS,
    "normalizations": normalizations.PARTS,
    "activations": activations.PARTS,
    "shapes": arithmetic.PARTS,
    "attention": attention.PARTS,
    "rotary": rotary.PARTS,
    "embeddings": embeddings.PARTS,
    "nesting": nesting.PARTS,
}

PARTS: Final[Mapping[str, Part]] = {name: part for room in ROOMS.values() for name, part in room.items()}
"""Every part by name: "layer-norm", "attention", "if"..."""

OPSETS: Final = tuple(range(13, 24))
_IR_VERSIONS: Final = ((23, 11), (21, 10), (19, 9), (0, 8))
_BATCHES: Final[list[int | str]] = ["batch", "batch", "batch", 1, 2]
_SEQUENCES: Final[list[int | str]] = ["sequence", "sequence", "sequence", 4, 1, 5]
_MORE_OUTPUTS: Final = 3
_COPIED: Final = 12


def models(
    *,
    parts: Collection[str] | None = None,
    min_parts: int = 1,
    max_parts: int = 6,
    opsets: Sequence[int] = OPSETS,
    dtypes: Sequence[DType] = ("float32", "float32", "float16", "float64"),
    more_outputs: int = _MORE_OUTPUTS,
) -> st.SearchStrategy[ModelProto]:
    """Well-typed models that ONNX Runtime loads and runs, for every size of their symbolic dimensions.

    The inputs `x` and `z` are floats (batch, sequence, hidden); parts add `ids`, `types`, `mask`, `flag` and past keys and
    values. Examples shrink to few parts, few outputs, the first dtype and opset, and the plain spelling of each part.

    Args:
        parts: names of parts or of groups of them ("layer-norm", "normalizations"), see `PARTS` and `ROOMS`; None for all. A
            name that is listed twice is drawn twice as often.
        min_parts, max_parts: how many parts a model has.
        opsets: versions of the standard domain, 13 to 23.
        dtypes: of the float values; one that is listed twice is drawn twice as often.
        more_outputs: how many inner values may be outputs, beside the last one.

    Raises:
        UsageError: a part is not known, or a number is out of range.
    """
    chosen = _parts(parts)
    if not 0 < min_parts <= max_parts:
        raise UsageError(f"there are no models of {min_parts} to {max_parts} parts.", "Give 1 <= min_parts <= max_parts.")
    wrong = [opset for opset in opsets if opset not in OPSETS]
    if wrong or not opsets:
        raise UsageError(f"no models of opset {wrong or 'none'} are made.", f"Opsets are {OPSETS[0]} to {OPSETS[-1]}.")
    return _models(chosen, min_parts, max_parts, tuple(opsets), tuple(dtypes), more_outputs)


def feeds(model: ModelProto) -> st.SearchStrategy[dict[str, np.ndarray]]:
    """Inputs that fit a model: ids within their tables, masks that pad on either side, floats of several scales."""
    loaded = load(model)
    seeds, which = st.integers(0, 2**16), st.integers(0, DEFAULT_COUNT - 1)
    return st.builds(lambda seed, index: dict(make_input_sets(loaded, seed)[index].arrays), seeds, which)


@st.composite
def cases(draw: st.DrawFn, models: st.SearchStrategy[ModelProto]) -> tuple[ModelProto, dict[str, np.ndarray]]:
    """A model and inputs for it."""
    model = draw(models)
    return model, draw(feeds(model))


def _parts(names: Collection[str] | None) -> list[list[Part]]:
    """Parts by room, so that a room with many does not drown the others."""
    if names is None:
        return [list(room.values()) for room in ROOMS.values()]
    unknown = [name for name in names if name not in PARTS and name not in ROOMS]
    if unknown or not names:
        raise UsageError(
            f"there is no part {', '.join(map(repr, unknown)) or 'at all'}.",
            f"Groups are {', '.join(ROOMS)}; parts are {', '.join(PARTS)}.",
        )
    return [list(ROOMS[name].values()) if name in ROOMS else [PARTS[name]] for name in names]


@st.composite
def _models(
    draw: st.DrawFn,
    rooms: list[list[Part]],
    min_parts: int,
    max_parts: int,
    opsets: tuple[int, ...],
    dtypes: tuple[DType, ...],
    more_outputs: int,
) -> ModelProto:
    kind = FLOATS[draw(st.sampled_from(dtypes))]
    w = Writer(draw, draw(st.sampled_from(opsets)), kind, _sizes(draw))
    w.values = [w.input(name, kind, w.sizes.batch, w.sizes.sequence, w.sizes.hidden) for name in ("x", "z")]
    for _ in range(draw(st.integers(min_parts, max_parts))):
        if w.spans and w.rarely():
            w.values.append(_again(w))
            continue
        start = len(w.nodes)
        result = w.pick(*w.pick(*rooms))(w)
        w.values.append(result)
        w.spans.append((start, len(w.nodes), result))
    return _assembled(w, more_outputs)


def _sizes(draw: st.DrawFn) -> Sizes:
    batch: int | str = draw(st.sampled_from(_BATCHES))
    sequence: int | str = draw(st.sampled_from(_SEQUENCES))
    heads, size = draw(st.sampled_from([(2, 4), (4, 4), (2, 8), (1, 8), (3, 4), (4, 8)]))
    return Sizes(batch, sequence, heads, size)


def _again(w: Writer) -> Value:
    """A part written twice, node for node, as exporters do with masks and positions of every layer."""
    start, end, result = w.pick(*w.spans)
    copied = w.nodes[start:end]
    made = {name for node in copied for name in node.output}
    if len(copied) > _COPIED or result.name not in made or any(_has_body(node) for node in copied):
        return w.op("Identity", result)
    renamed = {name: w.fresh(w.kind, ()).name for node in copied for name in node.output if name}
    for node in copied:
        copy = NodeProto()
        copy.CopyFrom(node)
        w.node_count += 1
        copy.name = w.node_naming.format(w.node_count)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copy.output[:] = [renamed.get(name, "") for name in node.output]
        w.nodes.append(copy)
    return Value(renamed[result.name], result.kind, result.dims)


def _has_body(node: NodeProto) -> bool:
    return any(attribute.HasField("g") for attribute in node.attribute)


def _assembled(w: Writer, more_outputs: int) -> ModelProto:
    last = w.values[-1]
    if last.name in w.inputs:
        last = w.op("Identity", last)
    outputs = _outputs(w, last, more_outputs)
    names = {value.name for value in outputs}
    known = [value for value in w.produced if value.name not in names]
    noted = {value.name: value for value in known if w.root is w} if w.chance() else {}
    overridden = [value for value in w.constants.values() if value.name in w.overridable]
    inputs = [*w.inputs.values(), *overridden]
    graph = helper.make_graph(
        w.nodes,
        "generated",
        [declaration(value) for value in inputs],
        [declaration(value, has_dims=w.chance()) for value in outputs],
        w.initializers,
        value_info=[declaration(value) for value in noted.values()],
    )
    imports = [helper.make_opsetid("", w.opset), *(helper.make_opsetid(domain, 1) for domain in sorted(w.domains | _local(w)))]
    ir_version = next(version for opset, version in _IR_VERSIONS if w.opset >= opset)
    return helper.make_model(graph, opset_imports=imports, functions=w.functions, ir_version=ir_version)


def _local(w: Writer) -> set[str]:
    return {LOCAL} if w.functions else set()


def _outputs(w: Writer, last: Value, more: int) -> list[Value]:
    """The last value, and some of those before it; what is not among them may be computed for nothing."""
    simple = [value for value in (*w.values[2:-1], *w.others, *w.produced) if value.kind != BOOL or value.rank]
    simple = [value for value in simple if value.kind != TensorProto.BFLOAT16]
    found = {last.name: last}
    if simple and more:
        for value in w.draw(st.lists(st.sampled_from(simple), max_size=more)):
            found.setdefault(value.name, value)
    outputs = list(found.values())
    return outputs[::-1] if len(outputs) > 1 and w.rarely() else outputs
