"""The child process that holds ONNX Runtime sessions, and the frames that it speaks over its two pipes.

A native crash in a session ends this process and not the user's. It imports numpy and onnxruntime only, so that it
starts in a few tenths of a second. One request loads one model, runs it on every input set and releases it; or it calls
a function by its name, for other work with models that may not come back.

A frame is eight bytes of header length, a JSON header, and the raw bytes of the arrays that the header lists. No part
of it is ever unpickled. Types that numpy lacks (bfloat16, the eight-bit floats) travel as unsigned integers of the same
width beside their name, hence `Tensor` below.
"""

import ctypes
import importlib
import json
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Final, cast

import numpy as np

if TYPE_CHECKING:
    import onnxruntime

Tensor = tuple[str, np.ndarray]
"""The element type's name ("float32", "bfloat16", "string"), and its storage."""

STORAGE: Final[dict[str, type[np.generic]]] = {
    "bfloat16": np.uint16,
    "float8_e4m3fn": np.uint8,
    "float8_e4m3fnuz": np.uint8,
    "float8_e5m2": np.uint8,
    "float8_e5m2fnuz": np.uint8,
}
"""Element types that numpy lacks, with the integers that carry them."""

EXOTIC_TYPES: Final = {
    "tensor(bfloat16)": "bfloat16",
    "tensor(float8e4m3fn)": "float8_e4m3fn",
    "tensor(float8e4m3fnuz)": "float8_e4m3fnuz",
    "tensor(float8e5m2)": "float8_e5m2",
    "tensor(float8e5m2fnuz)": "float8_e5m2fnuz",
}
"""What ONNX Runtime calls the types of STORAGE."""
# onnx.TensorProto.DataType; the onnx package is not imported here.
_ONNX_TYPES: Final = {
    "bfloat16": 16,
    "float8_e4m3fn": 17,
    "float8_e4m3fnuz": 18,
    "float8_e5m2": 19,
    "float8_e5m2fnuz": 20,
}
_LENGTH: Final = struct.Struct("!Q")


def write_frame(stream: IO[bytes], header: Mapping[str, Any], tensors: Mapping[str, Tensor], blob: bytes = b"") -> None:
    """Write one frame: a JSON-able header, named tensors and one opaque blob (the model)."""
    entries = []
    payloads: list[bytes | memoryview] = []
    for name, (dtype, array) in tensors.items():
        payload = _pack(dtype, array)
        entries.append({"name": name, "dtype": dtype, "shape": list(array.shape), "nbytes": len(payload)})
        payloads.append(payload)
    text = json.dumps({**header, "tensors": entries, "blob": len(blob)}).encode()
    stream.write(_LENGTH.pack(len(text)))
    stream.write(text)
    for payload in payloads:
        stream.write(payload)
    stream.write(blob)
    stream.flush()


def read_frame(stream: IO[bytes]) -> tuple[dict[str, Any], dict[str, Tensor], bytes]:
    """Read one frame.

    Raises:
        EOFError: the other side is gone.
    """
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    header = json.loads(_read(stream, length))
    tensors = {entry["name"]: (entry["dtype"], _unpack(entry, _read(stream, entry["nbytes"]))) for entry in header["tensors"]}
    return header, tensors, _read(stream, header["blob"])


def _read(stream: IO[bytes], length: int) -> bytes:
    chunks = []
    while length:
        chunk = stream.read(length)
        if not chunk:
            raise EOFError("the pipe was closed in the middle of a frame")
        chunks.append(chunk)
        length -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _pack(dtype: str, array: np.ndarray) -> bytes | memoryview:
    if dtype == "string":
        return json.dumps([str(item) for item in array.reshape(-1).tolist()]).encode()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _unpack(entry: Mapping[str, Any], payload: bytes) -> np.ndarray:
    if entry["dtype"] == "string":
        array = np.array(json.loads(payload), dtype=object)
    else:
        array = np.frombuffer(payload, dtype=STORAGE.get(entry["dtype"], entry["dtype"]))
    return array.reshape(entry["shape"])


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer requests until the other side closes its pipe."""
    while True:
        try:
            header, tensors, model = read_frame(requests)
        except EOFError:
            return
        reply, outputs = _called(header, model) if "call" in header else _answer(header, tensors, model)
        try:
            write_frame(replies, reply, outputs)
        except BrokenPipeError:
            return


def _called(header: Mapping[str, Any], payload: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a function returns for the payload and its arguments, where it is found as the parent would find it."""
    sys.path[:] = header["path"]
    module, _, function = header["call"].partition(":")
    try:
        return {"returned": getattr(importlib.import_module(module), function)(payload, header["arguments"])}, {}
    except Exception as error:  # the parent raises it there
        return {"call_error": str(error) or type(error).__name__, "call_error_type": type(error).__name__}, {}


def _answer(header: Mapping[str, Any], tensors: Mapping[str, Tensor], model: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    started = time.perf_counter()
    try:
        session = _session(header, model)
    except Exception as error:  # whatever the native library throws is the reply, and the parent raises it there
        return {"load_error": str(error) or type(error).__name__}, {}
    loaded = time.perf_counter()
    results: list[dict[str, Any]] = []
    outputs: dict[str, Tensor] = {}
    for index in range(header["sets"]):
        feeds = {name.partition("/")[2]: tensor for name, tensor in tensors.items() if name.startswith(f"{index}/")}
        begun = time.perf_counter()
        try:
            found = run_session(session, feeds)
        except Exception as error:  # as above: one input set that cannot be run does not end the others
            results.append({"error": str(error) or type(error).__name__, "seconds": time.perf_counter() - begun})
            continue
        results.append({"error": "", "seconds": time.perf_counter() - begun, "outputs": list(found)})
        outputs.update({f"{index}/{name}": tensor for name, tensor in found.items()})
    return {"load_seconds": loaded - started, "results": results}, outputs


def _session(header: Mapping[str, Any], model: bytes) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, header["optimization"])
    options.intra_op_num_threads = header["threads"]
    options.execution_order = getattr(onnxruntime.ExecutionOrder, header["order"])
    # Prepacking copies every weight; without it a session maps them from the model's own file.
    options.add_session_config_entry("session.disable_prepacking", "1")
    if header["folder"]:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", header["folder"])
    return onnxruntime.InferenceSession(model, options, providers=header["providers"])


def run_session(session: "onnxruntime.InferenceSession", feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs by name for feeds by name."""
    exotic = any(dtype in STORAGE for dtype, _ in feeds.values())
    exotic = exotic or any(output.type in EXOTIC_TYPES for output in session.get_outputs())
    if exotic:
        return _run_with_ort_values(session, feeds)
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, {name: array for name, (_, array) in feeds.items()})
    found: dict[str, Tensor] = {}
    for name, value in zip(names, values, strict=True):
        found.update(_tensors(name, value))
    return found


def _tensors(name: str, value: object) -> dict[str, Tensor]:
    """A tensor as it is, a sequence as `name[0]`, `name[1]`, ...; what is neither raises TypeError."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return {name: ("string" if array.dtype.kind in "OUS" else array.dtype.name, array)}
    if isinstance(value, list):
        found: dict[str, Tensor] = {}
        for index, item in enumerate(cast(Sequence[object], value)):
            found.update(_tensors(f"{name}[{index}]", item))
        return found
    if value is None:
        return {}
    raise TypeError(f"output {name!r} is a {type(value).__name__}, which cannot be compared")


def _run_with_ort_values(session: "onnxruntime.InferenceSession", feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way round numpy, for element types that onnxruntime will not convert to an array."""
    import onnxruntime

    values = {}
    for name, (dtype, array) in feeds.items():
        if dtype in STORAGE:
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _ONNX_TYPES[dtype])
        else:
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
    names = [output.name for output in session.get_outputs()]
    found: dict[str, Tensor] = {}
    for name, value in zip(names, session.run_with_ort_values(names, values), strict=True):
        exotic = EXOTIC_TYPES.get(value.data_type())
        if exotic is None:
            found.update(_tensors(name, value.numpy()))
            continue
        storage = np.dtype(STORAGE[exotic])
        shape = value.shape()
        payload = ctypes.string_at(value.data_ptr(), int(np.prod(shape)) * storage.itemsize)
        found[name] = (exotic, np.frombuffer(payload, dtype=storage).reshape(shape))
    return found


def _exit_with_parent(parent: int) -> None:
    """End this process when its parent is gone, even in the middle of a run that never returns."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _leave_no_core() -> None:
    """A crash here is expected and told by the parent; the core file would hold every weight that is mapped."""
    try:
        import resource
    except ImportError:  # Windows writes none
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def main() -> None:
    """Serve standard input; standard output is kept for frames, so that native prints go to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _leave_no_core()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
