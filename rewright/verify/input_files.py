"""Input sets that the user brings: arrays, .npz files, folders of them, and ONNX's test_data_set folders."""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.verify.inputs import InputSet
from rewright.verify.roles import InputRole, infer_roles

Arrays = Mapping[str, np.ndarray]


def load_input_sets(model: Model, source: str | PathLike[str] | Arrays | Sequence[Arrays]) -> list[InputSet]:
    """The user's input sets for the model.

    Args:
        model: its inputs decide which names, dtypes and shapes are right.
        source: a dict of arrays, a sequence of them, an `.npz` file, a folder of `.npz` files, a `test_data_set_*` folder
            with `input_0.pb`, ..., or a folder of such folders. Arrays of an `.npz` whose names begin with two
            underscores are ignored. Nothing is unpickled.

    Raises:
        UsageError: nothing is found, a file cannot be read, or a name, dtype or shape does not fit the model.
    """
    roles = infer_roles(model)
    if isinstance(source, Mapping):
        named = [("inputs", dict(source))]
    elif isinstance(source, str | PathLike):
        named = _read(Path(source), roles)
    else:
        named = [(f"inputs-{index}", dict(arrays)) for index, arrays in enumerate(source)]
    if not named:
        raise UsageError("there are no input sets in the given sequence.", "Give at least one dict of arrays.")
    masks = [role.name for role in roles if role.kind == "mask" and len(role.dims) == 2]
    return [InputSet(name, _checked(name, arrays, roles), "given by the user", tuple(masks)) for name, arrays in named]


def _read(path: Path, roles: Sequence[InputRole]) -> list[tuple[str, dict[str, np.ndarray]]]:
    if path.is_file() and path.suffix == ".npz":
        return [(path.stem, _read_npz(path))]
    if not path.is_dir():
        raise UsageError(f"{path} is not an .npz file or a folder of input sets.", "Check the path of the inputs.")
    if _protobuf_files(path):
        return [(path.name, _read_data_set(path, roles))]
    files = sorted(path.glob("*.npz"))
    folders = sorted(folder for folder in path.glob("test_data_set_*") if _protobuf_files(folder))
    if not files and not folders:
        raise UsageError(
            f"{path} holds no .npz file, no input_0.pb and no test_data_set_0 folder.", "Check the path of the inputs."
        )
    return [(file.stem, _read_npz(file)) for file in files] + [(folder.name, _read_data_set(folder, roles)) for folder in folders]


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


def _protobuf_files(folder: Path) -> list[Path]:
    files = [file for file in folder.glob("input_*.pb") if file.stem.removeprefix("input_").isdigit()]
    return sorted(files, key=lambda file: int(file.stem.removeprefix("input_")))


def _read_data_set(folder: Path, roles: Sequence[InputRole]) -> dict[str, np.ndarray]:
    """`input_N.pb` is the tensor of its own name, or of the N-th input when it has none."""
    arrays: dict[str, np.ndarray] = {}
    for file in _protobuf_files(folder):
        tensor = TensorProto()
        try:
            tensor.ParseFromString(file.read_bytes())
            if tensor.data_location == TensorProto.EXTERNAL:
                raise UsageError(f"{file} keeps its data in another file.", "Store the values in the .pb file itself.")
            values = numpy_helper.to_array(tensor)
        except (DecodeError, OSError, ValueError, TypeError) as error:
            raise UsageError(f"{file} cannot be read as a TensorProto: {error}.", "Write it again.") from error
        index = int(file.stem.removeprefix("input_"))
        name = tensor.name or (roles[index].name if index < len(roles) else file.stem)
        arrays[name] = values
    return arrays


def _checked(set_name: str, arrays: Arrays, roles: Sequence[InputRole]) -> dict[str, np.ndarray]:
    expected = {role.name: role for role in roles}
    for name in arrays:
        if name not in expected:
            near = difflib.get_close_matches(name, expected, n=3, cutoff=0.4) or list(expected)
            raise UsageError(
                f"input set '{set_name}' has an array '{name}', but the model has no such input.",
                f"Maybe you meant {', '.join(map(repr, near))}." if near else "The model has no inputs.",
            )
    missing = [name for name in expected if name not in arrays]
    if missing:
        raise UsageError(
            f"input set '{set_name}' lacks {', '.join(map(repr, missing))}.",
            f"The model's inputs are {', '.join(map(repr, expected))}.",
        )
    return {name: _fitting(set_name, np.asarray(arrays[name]), role) for name, role in expected.items()}


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
