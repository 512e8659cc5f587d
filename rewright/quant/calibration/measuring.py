"""Running a model on calibration data in the child process, a group of values at a time, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from rewright.model.carrier import Model
from rewright.model.regions import reads
from rewright.passes.session import PassSession
from rewright.quant.activations import check_sets, in_groups, measured, places, scratch
from rewright.quant.calibration.histogram import Array, restore
from rewright.quant.calibration.ranges import Ranges
from rewright.quant.calibration.thresholds import CalibrationMethod

_ROOM: Final = "rewright.quant.calibration.collecting"
_MOST_AT_ONCE: Final = 512
_MOST_SIZED: Final = 4
_SECONDS_A_CALL: Final = 20.0
_FLOAT_BYTES: Final = 4

Progress = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


def ranges_of(
    session: PassSession,
    model: Model,
    sets: Sequence[Path],
    names: Sequence[str],
    method: CalibrationMethod,
    progress: Progress | None = None,
) -> Ranges:
    """The ranges of float32 values of the main graph.

    The model is run once for each group of values, with those as its outputs; a group is what fits into 256 MB on the largest
    input sets, at least one value.

    Args:
        session: whose isolation runs the model.
        model: the model.
        sets: .npz files with one input set each.
        names: the values.
        method: how ranges are found.
        progress: called with input sets that were run, and those to run, over all groups.

    Raises:
        CalibrationError: the sets do not fit the model.
    """
    unknown = check_sets(model, sets)
    if unknown:
        session.notes.append(unknown)
    groups = list(_groups(session, model, sets, names))
    found: dict[str, tuple[float, float]] = {}
    how = {"histogram": method.needs_histogram, "averaging": method.averaging}
    for number, group in enumerate(groups):
        payload = showing(model, group).session_bytes()
        with scratch(model) as folder:
            state, done = str(folder / "state.npz"), 0
            arguments = {**places(sets), "values": group, "state": state, "seconds": _SECONDS_A_CALL, **how}
            while done < len(sets):
                done = measured(session, f"{_ROOM}:observe", payload, {**arguments, "start": done})
                if progress is not None:
                    progress(number * len(sets) + done, len(groups) * len(sets))
            seen = restore(state, with_histogram=method.needs_histogram, averaging=method.averaging)
        for name, each in zip(group, seen, strict=True):
            ends = method.range_of(each)
            if ends is not None:
                found[name] = ends
    return Ranges(found, method.name, len(sets))


def channel_maxima(session: PassSession, model: Model, sets: Sequence[Path], names: Sequence[str]) -> dict[str, Array]:
    """The largest magnitude of each channel, the last axis, of values of the main graph; those that have no such are left out.

    Raises:
        CalibrationError: the sets do not fit the model.
    """
    check_sets(model, sets)
    found: dict[str, Array] = {}
    for group in _groups(session, model, sets, names):
        with scratch(model) as folder:
            arguments = {**places(sets), "values": group, "folder": str(folder)}
            fits = measured(session, f"{_ROOM}:channel_maxima", showing(model, group).session_bytes(), arguments)
            found |= {name: np.load(folder / f"{place}.npy") for place, name in enumerate(group) if fits[place]}
    return found


def _groups(session: PassSession, model: Model, sets: Sequence[Path], names: Sequence[str]) -> Iterator[list[str]]:
    """The names in groups whose values fit into memory together on the largest sets."""
    made = {name for node in model.proto.graph.node for name in node.output}
    inner = [name for name in names if name in made]
    largest = dict.fromkeys(names, 0)
    if inner:
        shown = showing(model, inner, sized=True)
        outputs = [value.name for value in shown.proto.graph.output]
        arguments = {**places(_largest(sets)), "outputs": outputs}
        largest |= zip(inner, measured(session, f"{_ROOM}:sizes", shown.session_bytes(), arguments), strict=True)
    return in_groups({name: _FLOAT_BYTES * elements for name, elements in largest.items()}, _MOST_AT_ONCE)


def _largest(sets: Sequence[Path]) -> list[Path]:
    """The sets with the most elements, and those with the longest axes: values grow with the one or with the other."""
    if len(sets) <= _MOST_SIZED:
        return list(sets)
    weight: dict[Path, tuple[int, int]] = {}
    for path in sets:
        with np.load(path, allow_pickle=False) as archive:
            shapes = [archive[name].shape for name in archive.files]
        elements = sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes)
        weight[path] = elements, max((size for shape in shapes for size in shape), default=0)
    found = [max(sets, key=lambda path: weight[path]), max(sets, key=lambda path: weight[path][::-1])]
    return list(dict.fromkeys(found))


def showing(model: Model, names: Sequence[str], *, sized: bool = False) -> Model:
    """The part of the model that the float32 values need, with them as its outputs; inputs are none. ``sized``: their sizes."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    wanted = {name for node in graph.node for name in node.output}.intersection(names)
    if not wanted:
        return model  # inputs are asked for alone, and a model without outputs does not load
    kept, needed = list[NodeProto](), set(wanted)
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(reads(node))
    shown = [name for name in dict.fromkeys(names) if name in wanted]
    del graph.node[:], graph.output[:]
    graph.node.extend(kept[::-1])
    if sized:
        graph.node.extend(helper.make_node("Size", [name], [f"{name}/size/{place}"]) for place, name in enumerate(shown))
        shown = [f"{name}/size/{place}" for place, name in enumerate(shown)]
    kind = TensorProto.INT64 if sized else TensorProto.FLOAT
    graph.output.extend(ValueInfoProto(name=name, type=helper.make_tensor_type_proto(kind, None)) for name in shown)
    return model.with_proto(proto)
