"""The child's side of a measurement: one session, held while it lasts, and turns of runs that are timed.

It runs in a process of its own for each model, which a crash ends and not the measurement of the others.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rewright.model.memory import rss_peak
from rewright.verify import worker

if TYPE_CHECKING:
    import onnxruntime

_HELD: list[Callable[[], object]] = []
"""What runs the session on each input set."""


def hold(payload: bytes, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Loads the model of a frame of ``rewright.verify.worker`` and runs it once on each of the frame's input sets.

    Unlike the sessions that compare numbers, this one is made as users make theirs: with all of ONNX Runtime's optimizations
    and prepacked weights. What it does beyond that is to stop spinning after a run, so that the next model's turn is its own.
    """
    header, tensors, model = worker.read_frame(io.BytesIO(payload))
    started = time.perf_counter()
    session = _session(header, model)
    loaded = time.perf_counter() - started
    for index in range(header["sets"]):
        feeds = {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{index}/")}
        _HELD.append(_runner(session, feeds))
        _HELD[-1]()
    return {"load_seconds": loaded, "rss_peak": rss_peak()}


def turn(payload: bytes, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """One run that is not timed, then ``arguments["runs"]`` that are, each over all input sets: seconds of each for one set."""
    for run in _HELD:
        run()
    seconds = []
    for _ in range(arguments["runs"]):
        started = time.perf_counter()
        for run in _HELD:
            run()
        seconds.append((time.perf_counter() - started) / len(_HELD))
    return {"seconds": seconds, "rss_peak": rss_peak()}


def _session(header: Mapping[str, Any], model: bytes) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, header["optimization"])
    options.intra_op_num_threads = header["threads"]
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if header["folder"]:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", header["folder"])
    return onnxruntime.InferenceSession(model, options, providers=header["providers"])


def _runner(session: onnxruntime.InferenceSession, feeds: Mapping[str, worker.Tensor]) -> Callable[[], object]:
    exotic = any(dtype in worker.STORAGE for dtype, _ in feeds.values())
    if exotic or any(output.type in worker.EXOTIC_TYPES for output in session.get_outputs()):
        return lambda: worker.run_session(session, feeds)
    arrays = {name: array for name, (_, array) in feeds.items()}
    return lambda: session.run(None, arrays)
