"""Calibration data on its way to the child process: .npz files, one for each input set."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.quant.activations import calibration_sets

Data = str | PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]]


def files_of(model: Model, data: Data, folder: Path) -> list[Path]:
    """The .npz files of a path; for arrays, or an iterable of them, files that are written to ``folder``, one after the other.

    Args:
        model: its inputs give the dtypes of what comes as lists of numbers.
        data: an .npz file, a folder of them, a mapping from input names to arrays, or any iterable of such mappings, of any
            length: a list, a generator, a data loader, a data set. What no input takes is left out.
        folder: where the files go.

    Raises:
        UsageError: there is no data, or it is something else.
    """
    if isinstance(data, (str, PathLike)):
        try:
            return calibration_sets(str(data))
        except ValueError as error:
            raise UsageError(f"{error}.", "Write one .npz file for each input set, with numpy.savez.") from error
    samples: Iterable[Any] = (data,) if isinstance(data, Mapping) else data
    if not isinstance(samples, Iterable):
        raise UsageError(f"calibration data of the type {type(data).__name__} holds no samples.", "Give a path or mappings.")
    dtypes = {
        value.name: helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        for value in model.proto.graph.input
        if value.type.HasField("tensor_type")
    }
    paths: list[Path] = []
    for number, sample in enumerate(samples):
        if not hasattr(sample, "keys") or not hasattr(sample, "__getitem__"):
            hint = "Give mappings of input name to array: {'input_ids': array, ...}."
            raise UsageError(f"sample {number} of the calibration data is of the type {type(sample).__name__}.", hint)
        paths.append(folder / f"{number:08d}.npz")
        _write(paths[-1], {name: _array(sample[name], dtypes[name]) for name in sample.keys() if name in dtypes})  # noqa: SIM118
    if not paths:
        raise UsageError("the calibration data holds no sample.", "Give at least one mapping of input name to array.")
    return paths


def _array(value: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    if hasattr(value, "detach") and hasattr(value, "cpu"):  # a torch tensor
        value = value.detach().cpu().numpy()
    return value if isinstance(value, np.ndarray) else np.asarray(value, dtype)


def _write(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:  # numpy.savez takes names as keywords, and one may be "file"
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
