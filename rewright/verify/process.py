"""The parent's side of the session worker: it starts the child, talks to it, and survives its death."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, Final, Literal, Self

import ml_dtypes
import numpy as np
from onnx import TensorProto

from rewright.model.carrier import Model, all_graphs
from rewright.model.errors import RewrightError, UsageError
from rewright.verify import worker

Optimization = Literal["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"]

DEFAULT_TIMEOUT: Final = 600.0
TIMEOUT_VARIABLE: Final = "REWRIGHT_TIMEOUT"
TOO_SLOW: Final = "took longer than"
"""What messages say of a request that was ended because of its time."""

_STDERR_TAIL: Final = 2000
_HALVES: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


class SessionError(RewrightError):
    """A model cannot be loaded or run by ONNX Runtime; the message is the runtime's own."""

    exit_status = 1


class SessionLoadError(SessionError):
    """ONNX Runtime refuses the model."""


class SessionCrash(SessionError):  # noqa: N818 - it names what happened to the child, as the report does
    """The child process died or ran out of time; the message names the signal. The next request starts a new one.

    Attributes:
        is_timeout: whether it was ended because it took too long.
    """

    def __init__(self, message: str, hint: str = "", is_timeout: bool = False) -> None:
        super().__init__(message, hint)
        self.is_timeout = is_timeout


class CallError(RewrightError):
    """A function that was called in the child raised.

    Attributes:
        kind: the name of the class of its error.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class SetResult:
    """One input set's outputs, or the runtime's error for it.

    Attributes:
        outputs: arrays by output name; an element of a sequence output is named `name[index]`.
        error: empty on success.
        seconds: what the run took, without loading.
    """

    outputs: dict[str, np.ndarray] = field(repr=False)
    error: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class SessionRun:
    """A loaded model's results, one for each input set, in order."""

    load_seconds: float
    results: tuple[SetResult, ...]


class SessionWorker:
    """Runs models in a child process, one session at a time.

    Use it as a context manager. The child starts with the first request, is started again after a crash, and ends with
    the context or with this process, whichever is first.

    Args:
        providers: ONNX Runtime execution providers, in order of preference.
        threads: intra-op threads; 0 takes one for each CPU that this process may use.
        timeout: seconds for one request; a request that takes longer ends the child. By default what the environment variable
            REWRIGHT_TIMEOUT says, or 600.

    Raises:
        UsageError: REWRIGHT_TIMEOUT is not a number of seconds.
    """

    def __init__(
        self,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
        timeout: float | None = None,
    ) -> None:
        self.providers = tuple(providers)
        self.threads = threads or _usable_cpus()
        self.timeout = _timeout_of_environment() if timeout is None else timeout
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.process.pid if self._child is not None else None

    def warm_up(self) -> None:
        """Start the child without waiting for it, so that its imports overlap with what this process does meanwhile."""
        self._start()

    def load(self, model: Model, *, optimization: Optimization = "ORT_DISABLE_ALL") -> float:
        """Load a model, release it, and return the seconds that loading took.

        Raises:
            SessionLoadError: ONNX Runtime refuses the model.
            SessionCrash: the child died or ran out of time.
        """
        return self.run(model, (), optimization=optimization).load_seconds

    def run(
        self,
        model: Model,
        input_sets: Sequence[Mapping[str, np.ndarray]],
        *,
        optimization: Optimization = "ORT_DISABLE_ALL",
        threads: int = 0,
    ) -> SessionRun:
        """Load a model once and run it on every input set; a set that cannot be run has its error in its result.

        ``threads`` takes the place of the worker's own number where it is not 0; one is best for a model of a few nodes.

        Raises:
            SessionLoadError: ONNX Runtime refuses the model.
            SessionCrash: the child died or ran out of time.
        """
        tensors = {f"{index}/{name}": to_wire(array) for index, arrays in enumerate(input_sets) for name, array in arrays.items()}
        header = {
            "sets": len(input_sets),
            "optimization": optimization,
            "providers": list(self.providers),
            "threads": threads or self.threads,
            "folder": Model.SESSION_FOLDER,
            "order": "PRIORITY_BASED" if _has_half_weights(model) else "DEFAULT",
        }
        reply, outputs = self._exchange(header, tensors, model.session_bytes())
        if "load_error" in reply:
            raise SessionLoadError(reply["load_error"])
        results = []
        for index, result in enumerate(reply["results"]):
            arrays = {name: _from_wire(outputs[f"{index}/{name}"]) for name in result.get("outputs", ())}
            results.append(SetResult(arrays, result["error"], result["seconds"]))
        return SessionRun(reply["load_seconds"], tuple(results))

    def call(self, function: str, payload: bytes, arguments: Mapping[str, Any]) -> Any:
        """What ``function``, "package.module:name", returns for ``(payload, arguments)`` in the child; both ways as JSON.

        Raises:
            CallError: the function raised; the message is the error's own.
            SessionCrash: the child died or ran out of time.
        """
        header = {"call": function, "arguments": dict(arguments), "path": sys.path}
        reply, _ = self._exchange(header, {}, payload)
        if "call_error" in reply:
            raise CallError(reply["call_error"], reply["call_error_type"])
        return reply["returned"]

    def close(self) -> None:
        """End the child, if there is one. The worker can be used again afterwards."""
        child, self._child = self._child, None
        if child is None:
            return
        # Between requests the child holds nothing that needs an orderly end.
        child.process.kill()
        child.process.wait()
        with contextlib.suppress(BrokenPipeError):
            child.requests.close()
        child.replies.close()
        child.errors.close()

    def _exchange(
        self, header: Mapping[str, Any], tensors: Mapping[str, worker.Tensor], model: bytes
    ) -> tuple[dict[str, Any], dict[str, worker.Tensor]]:
        child = self._start()
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            child.process.kill()

        # Killing the child is what ends a blocked read, on every platform.
        watchdog = threading.Timer(self.timeout, expire)
        watchdog.daemon = True
        watchdog.start()
        try:
            worker.write_frame(child.requests, header, tensors, model)
            reply, outputs, _ = worker.read_frame(child.replies)
        except (EOFError, OSError) as error:
            raise SessionCrash(self._obituary(child, expired.is_set()), _CRASH_HINT, expired.is_set()) from error
        except BaseException:
            # An interrupted exchange leaves half a frame in the pipe: the next request needs a new child.
            child.process.kill()
            self.close()
            raise
        finally:
            watchdog.cancel()
        return reply, outputs

    def _start(self) -> _Child:
        if self._child is not None and self._child.process.poll() is None:
            return self._child
        self.close()
        self._child = _Child.start()
        return self._child

    def _obituary(self, child: _Child, expired: bool) -> str:
        """What the child died of; clears it away."""
        try:
            status = child.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            child.process.kill()
            status = child.process.wait()
        last_words = child.last_words()
        self.close()
        if expired:
            return f"the session {TOO_SLOW} {self.timeout:g} s and was ended."
        cause = f"died of {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
        return f"ONNX Runtime's process {cause}{': ' + last_words if last_words else ''}."


@dataclass(frozen=True)
class _Child:
    """A running worker and its three streams."""

    process: subprocess.Popen[bytes]
    requests: IO[bytes]
    replies: IO[bytes]
    errors: IO[bytes]

    @classmethod
    def start(cls) -> Self:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child, SessionWorker.close() ends both
        # Run by path and not with -m: the child then never imports the rest of the package, and -P keeps its own
        # folder, whose modules have everyday names, off the import path.
        process = subprocess.Popen(
            [sys.executable, "-P", worker.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        requests, replies = process.stdin, process.stdout
        if requests is None or replies is None:
            raise SessionCrash("the session worker has no pipes.")
        return cls(process, requests, replies, errors)

    def last_words(self) -> str:
        """The last line that the child wrote to standard error."""
        size = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, size - _STDERR_TAIL))
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


_CRASH_HINT: Final = "The model or a kernel crashes ONNX Runtime; reduce the model or report it there."


def first_line(message: str) -> str:
    """The first line of a native error; ONNX Runtime appends stack traces."""
    return message.strip().partition("\n")[0]


def _timeout_of_environment() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else DEFAULT_TIMEOUT
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= threading.TIMEOUT_MAX:
        raise UsageError(f"{TIMEOUT_VARIABLE} is '{text}'.", "Set it to the seconds that one run of a model may take.")
    return seconds


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def to_wire(array: np.ndarray) -> worker.Tensor:
    """The array as a frame takes it."""
    if array.dtype.kind in "OUST":
        return "string", array
    storage = worker.STORAGE.get(array.dtype.name)
    return array.dtype.name, array if storage is None else array.view(storage)


def _has_half_weights(model: Model) -> bool:
    """Whether ONNX Runtime casts weights to float32 as it runs; in its usual order it casts all of them before anything else."""
    return any(tensor.data_type in _HALVES for graph in all_graphs(model.proto) for tensor in graph.initializer)


def _from_wire(tensor: worker.Tensor) -> np.ndarray:
    dtype, array = tensor
    return array.view(getattr(ml_dtypes, dtype)) if dtype in worker.STORAGE else array
