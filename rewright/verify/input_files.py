"""Input sets that the user brings: arrays, iterables of them, .npz files, folders, and ONNX's test_data_set folders."""

from __future__ import annotations

import difflib
import itertools
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.verify.inputs import InputSet, Origin
from rewright.verify.roles import InputRole, infer_roles, roles_with_defaults

Arrays = Mapping[str, np.ndarray]


Source = str | PathLike[str] | Arrays | Iterable[Arrays]

MAXIMUM_SETS: Final = 32
"""Sets that are taken of an iterable that is no sequence: a data loader has thousands, a generator may never end."""


def load_input_sets(model: Model, source: Source, *, origin: Origin = "given", by: str = "the user") -> list[InputSet]:
    """The user's input sets for the model.

    Args:
        model: its inputs decide which names, dtypes and shapes are right.
        source: a dict of arrays, an iterable of them (a list, a generator, a data loader: of what is no sequence the first
            MAXIMUM_SETS are taken), an `.npz` file, a folder of `.npz` files, a `test_data_set_*` folder with `input_0.pb`,
            ..., or a folder of such folders; `output_0.pb`, ... beside them are what the model is expected to compute.
            Arrays of an `.npz` whose names begin with two underscores are ignored. Nothing is unpickled. An array is
            anything that numpy makes one of, and a torch tensor on any device.
        origin, by: who gives them, for the report.

    Raises:
        UsageError: nothing is found, a file cannot be read, or a name, dtype or shape does not fit the model.
    """
    roles, optional = infer_roles(model), roles_with_defaults(model)
    description = f"given by {by}"
    if isinstance(source, Mapping):
        found = [_Found("inputs", source)]
    elif isinstance(source, str | PathLike):
        found = _read(Path(source), model, roles)
    else:
        found, is_cut = _from_iterable(source)
        description += f" (the first {MAXIMUM_SETS})" if is_cut else ""
    if not found:
        raise UsageError("there are no input sets in the given sequence.", "Give at least one dict of arrays.")
    masks = tuple(role.name for role in roles if role.kind == "mask" and len(role.dims) == 2)
    return [
        InputSet(each.name, _checked(each.name, each.arrays, roles, optional), description, masks, origin, each.expected)
        for each in found
    ]


@dataclass(frozen=True)
class _Found:
    """One set as it was found, not yet held against the model."""

    name: str
    arrays: Mapping[str, object]
    expected: Arrays = field(default_factory=dict)


def _from_iterable(source: Iterable[Arrays]) -> tuple[list[_Found], bool]:
    """The sets, and whether there were more."""
    if not isinstance(source, Iterable):
        raise UsageError(
            f"the inputs are of the type {type(source).__name__}, from which no sets can be taken.",
            "Give a path, a dict of arrays, or an iterable of such dicts.",
        )
    items = list(source) if isinstance(source, Sequence) else list(itertools.islice(source, MAXIMUM_SETS + 1))
    is_cut = not isinstance(source, Sequence) and len(items) > MAXIMUM_SETS
    found = []
    for index, item in enumerate(items[:MAXIMUM_SETS] if is_cut else items):
        # what tokenizers and data loaders yield often behaves like a dict without being one
        if not isinstance(item, Mapping) and not (hasattr(item, "keys") and hasattr(item, "__getitem__")):
            raise UsageError(
                f"item {index} of the given inputs is of the type {type(item).__name__}, not a mapping.",
                "Give mappings of input name to array: {'input_ids': array, ...}.",
            )
        found.append(_Found(f"inputs-{index}", {name: item[name] for name in item.keys()}))  # noqa: SIM118 - not always a dict
    return found, is_cut


def _read(path: Path, model: Model, roles: Sequence[InputRole]) -> list[_Found]:
    if path.is_file() and path.suffix == ".npz":
        return [_Found(path.stem, _read_npz(path))]
    if not path.is_dir():
        raise UsageError(f"{path} is not an .npz file or a folder of input sets.", "Check the path of the inputs.")
    if _protobuf_files(path, "input"):
        return [_read_data_set(path, model, roles)]
    files = sorted(path.glob("*.npz"))
    folders = sorted(folder for folder in path.glob("test_data_set_*") if _protobuf_files(folder, "input"))
    if not files and not folders:
        raise UsageError(
            f"{path} holds no .npz file, no input_0.pb and no test_data_set_0 folder.", "Check the path of the inputs."
        )
    return [_Found(file.stem, _read_npz(file)) for file in files] + [_read_data_set(folder, model, roles) for folder in folders]


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if not name.startswith("__")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} cannot be read: {error}.", "Write it with numpy.savez.") from error


def write_npz(path: Path, arrays: Arrays) -> None:
    """Writes arrays so that they can be read again; ``np.savez`` takes names as keyword arguments, and one may be "file"."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


def _protobuf_files(folder: Path, sort: str) -> list[tuple[int, Path]]:
    """The files `input_N.pb`, or `output_N.pb`, with their numbers."""
    numbers = {file: file.stem.removeprefix(f"{sort}_") for file in folder.glob(f"{sort}_*.pb")}
    return sorted((int(number), file) for file, number in numbers.items() if number.isdigit())


def _read_data_set(folder: Path, model: Model, roles: Sequence[InputRole]) -> _Found:
    """`input_N.pb` is the tensor of its own name, or of the N-th input when it has none; outputs likewise.

    What is expected of an output that is no tensor is not read.
    """
    names = [role.name for role in roles]
    arrays = dict(_read_tensor(file, number, names) for number, file in _protobuf_files(folder, "input"))
    outputs = model.proto.graph.output
    expected = dict(
        _read_tensor(file, number, [value.name for value in outputs])
        for number, file in _protobuf_files(folder, "output")
        if number >= len(outputs) or outputs[number].type.HasField("tensor_type")
    )
    return _Found(folder.name, arrays, expected)


def _read_tensor(file: Path, number: int, names: Sequence[str]) -> tuple[str, np.ndarray]:
    tensor = TensorProto()
    try:
        tensor.ParseFromString(file.read_bytes())
        if tensor.data_location == TensorProto.EXTERNAL:
            raise UsageError(f"{file} keeps its data in another file.", "Store the values in the .pb file itself.")
        values = numpy_helper.to_array(tensor)
    except (DecodeError, OSError, ValueError, TypeError) as error:
        raise UsageError(f"{file} cannot be read as a TensorProto: {error}.", "Write it again.") from error
    return tensor.name or (names[number] if number < len(names) else file.stem), values


def _checked(
    set_name: str, arrays: Mapping[str, object], roles: Sequence[InputRole], optional: Sequence[InputRole]
) -> dict[str, np.ndarray]:
    """The arrays, held against the model; those of inputs that have a default may be missing."""
    expected = {role.name: role for role in roles}
    expected |= {role.name: role for role in optional if role.name in arrays}
    for name in arrays:
        if name not in expected:
            near = difflib.get_close_matches(name, expected, n=3, cutoff=0.4) or list(expected)
            raise UsageError(
                f"input set '{set_name}' has an array '{name}', but the model has no such input.",
                f"Maybe you meant {', '.join(map(repr, near))}; leave it out if not." if near else "The model has no inputs.",
            )
    missing = [name for name in expected if name not in arrays]
    if missing:
        raise UsageError(
            f"input set '{set_name}' lacks {', '.join(map(repr, missing))}.",
            f"The model's inputs are {', '.join(map(repr, expected))}.",
        )
    return {name: _fitting(set_name, _array(set_name, name, arrays[name]), role) for name, role in expected.items()}


def _array(set_name: str, name: str, value: object) -> np.ndarray:
    """As an array; a torch tensor may require a gradient or be on a device, of which numpy wants to know nothing."""
    try:
        if hasattr(value, "detach") and hasattr(value, "cpu"):
            value = value.detach().cpu()
        return np.asarray(value)
    except Exception as error:  # whatever the foreign object raises on its way to numpy
        raise UsageError(
            f"input '{name}' of set '{set_name}' is a {type(value).__name__} that numpy makes no array of: {error}.",
            "Convert it to a numpy array first.",
        ) from error


def _fitting(set_name: str, array: np.ndarray, role: InputRole) -> np.ndarray:
    is_text = role.dtype == np.dtype(object) and array.dtype.kind in "OUST"
    if not is_text and array.dtype != role.dtype:
        wanted = "string" if role.dtype == np.dtype(object) else role.dtype.name
        raise UsageError(
            f"input '{role.name}' of set '{set_name}' has dtype {array.dtype.name}, the model takes {wanted}.",
            f"Convert it with astype('{wanted}')." if wanted != "string" else "Give an array of str.",
        )
    fits = len(array.shape) == len(role.dims) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(role.dims, array.shape, strict=True)
    )
    if not fits:
        wanted_shape = [dim if dim is not None else "?" for dim in role.dims]
        raise UsageError(
            f"input '{role.name}' of set '{set_name}' has shape {list(array.shape)}, the model takes {wanted_shape}.",
            "Give arrays of the model's own shapes.",
        )
    return array
