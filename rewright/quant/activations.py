"""What the activations of a model are on the user's input sets, as far as the quantization of weights needs to know."""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from onnx import ModelProto, TypeProto, ValueInfoProto, helper
from pydantic import AfterValidator

from rewright.model.carrier import Model
from rewright.model.errors import SelectionError
from rewright.passes.ort.exchange import NotCarriedOut, call
from rewright.passes.session import PassSession
from rewright.quant.blocks import Array

_MOMENTS: Final = "rewright.quant.measuring:moments"
_AGREEMENT: Final = "rewright.quant.measuring:agreement"
_BYTES_AT_ONCE: Final = 1 << 28


class CalibrationError(SelectionError):
    """The calibration data does not fit the model: what was asked for cannot be done, and the run ends."""


def calibration_sets(place: str) -> list[Path]:
    """The .npz files of a path, which is one, or a folder of them; each holds one input set.

    Raises:
        ValueError: there is none.
    """
    path = Path(place)
    if path.is_file() and zipfile.is_zipfile(path):
        return [path]
    found = sorted(path.glob("*.npz")) if path.is_dir() else []
    if not found:
        raise ValueError(f"'{place}' is neither an .npz file nor a folder of them")
    return found


def _there(place: str | None) -> str | None:
    if place is not None:
        calibration_sets(place)
    return place


CalibrationPath = Annotated[str | None, AfterValidator(_there)]
"""An option that names an .npz file, or a folder of them."""


def check_sets(model: Model, sets: Sequence[Path]) -> str:
    """Holds the names in the files against the inputs of the model; says which no input takes, or nothing.

    Raises:
        CalibrationError: a file lacks an input, or cannot be read.
    """
    given = {tensor.name for tensor in model.proto.graph.initializer}
    inputs = {value.name for value in model.proto.graph.input}
    wanted = [value.name for value in model.proto.graph.input if value.name not in given]
    unknown: dict[str, None] = {}
    for path in sets:
        try:
            with np.load(path, allow_pickle=False) as archive:
                names = set(archive.files)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            message = f"the calibration set {path} cannot be read: {error}."
            raise CalibrationError(message, "Write it with numpy.savez.") from error
        unknown |= dict.fromkeys(sorted(name for name in names - inputs if not name.startswith("__")))
        lacking = [name for name in wanted if name not in names]
        if lacking:
            hint = f"It holds {', '.join(sorted(names)) or 'nothing'}; the model takes {', '.join(wanted)}."
            raise CalibrationError(f"the calibration set {path} lacks the input '{lacking[0]}'.", hint)
    return left_out(unknown)


def left_out(names: Iterable[str]) -> str:
    """That columns of calibration data were left out, in a sentence; nothing where there are none."""
    listed = ", ".join(f"'{name}'" for name in names)
    return f"calibration data has {listed}, which no input of the model takes: left out" if listed else ""


def moments_of(
    session: PassSession, model: Model, sets: Sequence[Path], widths: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, Array, int]]:
    """X^T X (K, K) in float32 of values X (..., K) of the main graph, one after the other, and over how many rows.

    Args:
        session: whose isolation runs the model.
        model: as it is before any weight is quantized.
        sets: .npz files.
        widths: the values: K, and their element type.

    Raises:
        CalibrationError: the model does not run on the sets.
    """
    for names in in_groups({name: 4 * width * width for name, (width, _) in widths.items()}):
        with scratch(model) as folder:
            arguments = {**places(sets), "values": names, "folder": str(folder)}
            shown = _showing(model, {name: widths[name][1] for name in names})
            rows = measured(session, _MOMENTS, shown.session_bytes(), arguments)
            for number, name in enumerate(names):
                yield name, np.load(folder / f"{number}.npy"), rows[number]


def agreement_of(session: PassSession, model: Model, other: Model, sets: Sequence[Path]) -> list[tuple[str, float, float]]:
    """How the float outputs of two models agree: each name, the share of rows along the last axis whose largest element is
    in the same place, and the ratio of signal to difference in decibels.

    Raises:
        CalibrationError: the models do not run on the sets.
    """
    with scratch(model) as folder:
        path = folder / "other"
        path.write_bytes(other.session_bytes())
        found = measured(session, _AGREEMENT, model.session_bytes(), {**places(sets), "other": str(path)})
    return [
        (name, same / rows, 10 * math.log10(signal / noise) if noise and signal else math.inf)
        for name, rows, same, signal, noise in found
    ]


@contextmanager
def scratch(model: Model) -> Iterator[Path]:
    """A folder that lasts as long as the block."""
    folder = Path(tempfile.mkdtemp(prefix="calibration-", dir=model.files.scratch))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def places(sets: Sequence[Path]) -> dict[str, Any]:
    """The arguments of the child's side that say where weights and input sets are."""
    return {"root": Model.SESSION_FOLDER, "sets": [str(path.resolve()) for path in sets]}


def measured(session: PassSession, function: str, payload: bytes, arguments: Mapping[str, Any]) -> Any:
    """What a function of the child's side returns.

    Raises:
        CalibrationError: the model does not run on the data.
    """
    try:
        return call(session, function, payload, arguments)
    except NotCarriedOut as error:
        raise CalibrationError(
            f"the model does not run on the calibration data: {error}", "Give input sets that the model takes, in its dtypes."
        ) from error


def in_groups(nbytes: Mapping[str, int], most: int | None = None) -> Iterator[list[str]]:
    """Names in groups of at most ``most`` that fit into 256 MB of memory together, at least one in each.

    Args:
        nbytes: what each name needs.
        most: names in a group; None for any number.
    """
    group: list[str] = []
    room = _BYTES_AT_ONCE
    for name, needed in nbytes.items():
        if group and (needed > room or len(group) == most):
            yield group
            group, room = [], _BYTES_AT_ONCE
        group.append(name)
        room -= needed
    if group:
        yield group


def _showing(model: Model, values: Mapping[str, int]) -> Model:
    """The model with the values, whose element types are given, among its outputs."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    present = {value.name for value in (*proto.graph.output, *proto.graph.input)}
    for name, elem_type in values.items():
        if name not in present:
            kind: TypeProto = helper.make_tensor_type_proto(elem_type, None)
            proto.graph.output.append(ValueInfoProto(name=name, type=kind))
    return model.with_proto(proto)
