"""Calibration data on its way to the child process: .npz files, one for each input set."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np
from onnx import helper

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.quant.activations import calibration_sets, left_out

Data = str | PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]]

_INTEGERS: Final = "iu"


@dataclass(frozen=True)
class CalibrationFiles:
    """Calibration data as files.

    Attributes:
        paths: .npz files, one for each input set.
        left_out: columns of the data that no input of the model takes.
    """

    paths: list[Path]
    left_out: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """What was left out, in a sentence; empty where nothing was."""
        return left_out(self.left_out)


def files_of(model: Model, data: Data, folder: Path) -> CalibrationFiles:
    """The .npz files of a path; for arrays, or an iterable of them, files that are written to ``folder``, one after the other.

    Args:
        model: its inputs say which columns are needed, and in which dtypes.
        data: an .npz file, a folder of them, a mapping from input names to arrays, or any iterable of such mappings, of any
            length: a list, a generator, a torch DataLoader, a Hugging Face dataset. What holds lists of numbers, tensors on any
            device, or other integers or floats than the model takes is converted; a sample without the batch becomes a
            batch of one.
        folder: where the files go.

    Raises:
        UsageError: there is no data, it is something else, or it lacks an input.
    """
    if isinstance(data, (str, PathLike)):
        try:
            return CalibrationFiles(calibration_sets(str(data)))
        except ValueError as error:
            raise UsageError(f"{error}.", "Write one .npz file for each input set, with numpy.savez.") from error
    samples: Iterable[Any] = (data,) if isinstance(data, Mapping) else data
    if not isinstance(samples, Iterable):
        raise UsageError(f"calibration data of the type {type(data).__name__} holds no samples.", "Give a path or mappings.")
    inputs, optional = _inputs(model)
    paths: list[Path] = []
    unknown: dict[str, None] = {}
    for number, sample in enumerate(samples):
        if not hasattr(sample, "keys") or not hasattr(sample, "__getitem__"):
            hint = "Give mappings of input name to array: {'input_ids': array, ...}."
            raise UsageError(f"sample {number} of the calibration data is of the type {type(sample).__name__}.", hint)
        names = [str(name) for name in sample.keys()]  # noqa: SIM118 - what behaves like a mapping need not be one
        lacking = [name for name in inputs if name not in names and name not in optional]
        if lacking:
            hint = f"It holds {', '.join(names) or 'nothing'}; the model takes {', '.join(inputs)}."
            raise UsageError(f"sample {number} of the calibration data lacks the input '{lacking[0]}'.", hint)
        unknown |= dict.fromkeys(name for name in names if name not in inputs)
        paths.append(folder / f"{number:08d}.npz")
        _write(paths[-1], {name: _array(number, name, sample[name], *inputs[name]) for name in names if name in inputs})
    if not paths:
        raise UsageError("the calibration data holds no sample.", "Give at least one mapping of input name to array.")
    return CalibrationFiles(paths, tuple(unknown))


def _inputs(model: Model) -> tuple[dict[str, tuple[np.dtype[Any], int | None]], set[str]]:
    """Dtype and rank of each tensor among the inputs, and which of them have a default."""
    found: dict[str, tuple[np.dtype[Any], int | None]] = {}
    for value in model.proto.graph.input:
        if value.type.HasField("tensor_type"):
            kind = value.type.tensor_type
            rank = len(kind.shape.dim) if kind.HasField("shape") else None
            found[value.name] = helper.tensor_dtype_to_np_dtype(kind.elem_type), rank
    return found, {tensor.name for tensor in model.proto.graph.initializer}


def _array(number: int, name: str, value: Any, dtype: np.dtype[Any], rank: int | None) -> np.ndarray[Any, Any]:
    try:
        if hasattr(value, "detach") and hasattr(value, "cpu"):  # a torch tensor
            value = value.detach().cpu().numpy()
        array = value if isinstance(value, np.ndarray) else np.asarray(value, dtype)
        array = _converted(array, dtype)
    except (TypeError, ValueError, OverflowError) as error:
        message = f"'{name}' in sample {number} of the calibration data is no array of {dtype}: {error}."
        raise UsageError(message, "Give one array, or lists of one length, for each input.") from error
    return array[None] if rank is not None and array.ndim == rank - 1 else array


def _converted(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """In the model's dtype where that holds the same integers, or floats; as it is where it is something else."""
    if array.dtype == dtype:
        return array
    if dtype.kind in _INTEGERS and array.dtype.kind in _INTEGERS + "b":
        made = array.astype(dtype)
        if not np.array_equal(made, array):
            raise ValueError(f"it holds numbers beyond {dtype}")
        return made
    return array.astype(dtype) if dtype.kind == array.dtype.kind == "f" else array


def _write(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # numpy.savez takes names as keywords, and one may be "file"
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
