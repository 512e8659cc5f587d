"""The child's side of calibration: runs a model on the user's input sets, and returns sums of what was seen.

Each function takes a serialized skeleton and arguments: "root", what the weights are relative to; "sets", paths of .npz files,
each with one input set. One set is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray[Any, Any]]


def moments(model: bytes, arguments: dict[str, Any]) -> list[int]:
    """Writes X^T X (K, K), in float32, of values X (..., K) to "folder", as 0.npy, 1.npy, ... in the order of "values".

    Returns:
        how many rows of each were seen.
    """
    names: list[str] = arguments["values"]
    sums: dict[str, np.ndarray[Any, Any]] = {}
    rows = dict.fromkeys(names, 0)
    session = _session(model, arguments["root"])
    for feeds in _sets(arguments["sets"], session):
        wanted = [name for name in names if name not in feeds]
        found = dict(zip(wanted, session.run(wanted, feeds), strict=True)) if wanted else _checked(session, feeds)
        for name in names:
            seen = np.asarray(found.pop(name) if name in found else feeds[name], np.float32)
            seen = seen.reshape(-1, seen.shape[-1])
            seen = seen[np.isfinite(seen).all(1)]
            sums[name] = sums[name] + seen.T @ seen if name in sums else seen.T @ seen
            rows[name] += len(seen)
    for number, name in enumerate(names):
        np.save(Path(arguments["folder"]) / f"{number}.npy", sums[name])
    return [rows[name] for name in names]


def agreement(model: bytes, arguments: dict[str, Any]) -> list[list[Any]]:
    """How the float outputs of a model agree with those of "other", a file with a second skeleton.

    Returns:
        for each output its name, the rows along its last axis, those whose largest element is in the same place, and the sums of
        the squares of the other's values and of the differences.
    """
    one = _session(model, arguments["root"])
    other = _session(Path(arguments["other"]).read_bytes(), arguments["root"])
    found: dict[str, list[Any]] = {}
    for feeds in _sets(arguments["sets"], one):
        pairs = zip(one.run(None, feeds), other.run(None, feeds), strict=True)
        for info, (left, right) in zip(one.get_outputs(), pairs, strict=True):
            if not isinstance(left, np.ndarray) or left.dtype.kind != "f" or not left.ndim or not left.size:
                continue
            left, right = (each.astype(np.float64).reshape(-1, each.shape[-1]) for each in (left, right))  # noqa: PLW2901
            entry = found.setdefault(info.name, [info.name, 0, 0, 0.0, 0.0])
            entry[1] += len(left)
            entry[2] += int((left.argmax(1) == right.argmax(1)).sum())
            entry[3] += float(np.square(right).sum())
            entry[4] += float(np.square(left - right).sum())
    return list(found.values())


def _checked(session: Any, feeds: Arrays) -> Arrays:
    """Nothing but what the model says of inputs that do not fit."""
    session.run(None, feeds)
    return {}


def _session(model: bytes, root: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", root)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _sets(paths: list[str], session: Any) -> Iterator[Arrays]:
    names = {info.name for info in session.get_inputs()}
    for path in paths:
        with np.load(path, allow_pickle=False) as archive:
            yield {name: archive[name] for name in archive.files if name in names}
