"""A process with other hashes, which runs chains again: an order that comes from a set of names shows there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, cast

import onnx
from onnx import ModelProto

if TYPE_CHECKING:
    from rewright.passes.contract import Target

_OTHER_HASHES: Final = "4242"


class Echo:
    """Runs chains without verification in another process. A context manager; the process starts with the first request.

    Args:
        plugins, autoload: where the catalog of that process comes from, as for ``Catalog.load``.
    """

    def __init__(self, plugins: tuple[str, ...] = (), autoload: bool = True) -> None:
        self._arguments = json.dumps({"plugins": plugins, "autoload": autoload})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def digest(self, model: ModelProto, chain: str, target: Target = "cpu") -> str:
        """The digest of what the chain makes of the model, or what it died of."""
        try:
            return self._asked(target.encode(), chain.encode(), model.SerializeToString())
        except BaseException:
            self.close()  # half a request may be in the pipe
            raise

    def _asked(self, *parts: bytes) -> str:
        if self._process is None or self._process.poll() is not None:
            self.close()
            command = [sys.executable, "-c", "from rewright.testing.fuzz.echo import main; main()", self._arguments]
            environment = {**os.environ, "PYTHONHASHSEED": _OTHER_HASHES}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise OSError("the echo has no pipes")
        for part in parts:
            process.stdin.write(len(part).to_bytes(8) + part)
        process.stdin.flush()
        answer = process.stdout.readline().decode().strip()
        if not answer:
            raise OSError(f"the echo ended with status {process.wait()}")
        return answer


def main() -> None:
    """Answers requests on standard input until it is closed."""
    from rewright.api import Chain
    from rewright.registry.catalog import Catalog
    from rewright.testing.fuzz.whole import digest

    catalog = Catalog.load(**json.loads(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    requests = sys.stdin.buffer
    while length := requests.read(8):
        target = cast("Target", requests.read(int.from_bytes(length)).decode())
        chain, model = (requests.read(int.from_bytes(requests.read(8))) for _ in range(2))
        try:
            answer = digest(
                Chain(chain.decode(), catalog=catalog).run(onnx.load_model_from_string(model), verify="off", target=target).model
            )
        except Exception as error:
            answer = f"{type(error).__name__}: {error}".replace("\n", " ")
        print(answer, file=answers, flush=True)
