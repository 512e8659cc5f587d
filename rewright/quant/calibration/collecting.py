"""The child's side of calibration: runs a model on input sets from files and takes in what its outputs hold.

Each function takes a serialized skeleton and arguments: "root", what the weights are relative to; "sets", paths of .npz files,
each with one input set. One set is in memory at a time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from rewright.quant.calibration.histogram import Observed, restore, save


def sizes(model: bytes, arguments: dict[str, Any]) -> list[int]:
    """The largest number of elements of each value of "values" on any of the sets, from outputs named as "outputs" say."""
    session = _session(model, arguments["root"])
    largest = [0] * len(arguments["outputs"])
    for path in arguments["sets"]:
        found = session.run(arguments["outputs"], _feeds(session, path))
        largest = [max(before, int(now)) for before, now in zip(largest, found, strict=True)]
    return largest


def observe(model: bytes, arguments: dict[str, Any]) -> int:
    """Takes in the values "values", outputs or inputs of the model, into the file "state", for some "seconds".

    More arguments: "histogram", whether numbers are counted; "averaging", see ``Observed``; "start", the first set.

    Returns:
        the number of the first set that was not run.
    """
    names: list[str] = arguments["values"]
    state = Path(arguments["state"])
    how = {"with_histogram": arguments["histogram"], "averaging": arguments["averaging"]}
    observed = restore(str(state), **how) if state.exists() else [Observed(**how) for _ in names]
    session = _session(model, arguments["root"])
    paths, place = arguments["sets"], arguments["start"]
    until = time.monotonic() + arguments["seconds"]
    while place < len(paths):
        for each, array in zip(observed, _values(session, names, paths[place]), strict=True):
            each.add(array)
        place += 1
        if time.monotonic() > until:
            break
    save(str(state), observed)
    return int(place)


def channel_maxima(model: bytes, arguments: dict[str, Any]) -> list[bool]:
    """Writes the largest magnitude of each channel, the last axis, of each value of "values" to "folder", as 0.npy, 1.npy, ...

    Returns:
        which of them have one size throughout, and nothing but finite numbers.
    """
    names: list[str] = arguments["values"]
    session = _session(model, arguments["root"])
    largest: list[Any] = [None] * len(names)
    fits = [True] * len(names)
    for path in arguments["sets"]:
        for place, array in enumerate(_values(session, names, path)):
            if not array.ndim or not array.size:
                continue
            flat = array.reshape(-1, array.shape[-1])
            found = np.maximum(flat.max(0), -flat.min(0))
            fits[place] &= bool(np.isfinite(found).all())
            if largest[place] is None:
                largest[place] = found
            elif found.shape == largest[place].shape:
                np.maximum(largest[place], found, out=largest[place])
            else:
                fits[place] = False
    for place, found in enumerate(largest):
        fits[place] &= found is not None
        np.save(Path(arguments["folder"]) / f"{place}.npy", np.zeros(0, np.float32) if found is None else found)
    return fits


def _values(session: Any, names: list[str], path: str) -> list[Any]:
    feeds = _feeds(session, path)
    wanted = [name for name in names if name not in feeds]
    found = dict(zip(wanted, session.run(wanted, feeds), strict=True)) if wanted else {}
    return [found[name] if name in found else feeds[name] for name in names]


def _feeds(session: Any, path: str) -> dict[str, Any]:
    names = {info.name for info in session.get_inputs()}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if name in names}


def _session(model: bytes, root: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False  # it grows by doubling, and never gives back what the longest set has needed
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", root)
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
