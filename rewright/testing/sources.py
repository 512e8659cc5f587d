"""What the kit takes for a model, and how it notices that somebody wrote into one."""

from __future__ import annotations

import hashlib
from os import PathLike, fspath
from pathlib import Path
from typing import Final, Protocol

import onnx
from onnx import ModelProto
from onnx.parser import ParseError, parse_model

from rewright.model.carrier import Model, all_nodes, stubs
from rewright.model.elements import normal_domain
from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.model.weights import slice_of

DEFAULT_OPSET: Final = 17
"""Of a model in text form that does not say."""


class Buildable(Protocol):
    """Anything that can say what model it stands for, such as a GraphBuilder."""

    def model(self) -> ModelProto: ...


Source = str | PathLike[str] | ModelProto | Model | Buildable


def parse(text: str) -> ModelProto:
    """A model from ONNX's text form, completed where the header leaves something out.

    ``g (float[N] x) => (float[N] y) { y = Relu(x) }`` is enough: the standard domain is imported at opset 17, every other
    domain that a node names at version 1, and the IR version is the first that has that opset.

    Raises:
        UsageError: the text does not parse; the message has the parser's own words.
    """
    try:
        proto = parse_model(text)
    except ParseError as error:
        reason = (error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)).replace("\n", " ").strip()
        raise UsageError(
            f"the model's text does not parse: {reason}", "See the textual syntax in onnx's documentation (docs/Syntax.md)."
        ) from error
    complete(proto)
    return proto


def complete(proto: ModelProto) -> None:
    """Adds the opset imports and the IR version that a model lacks, in place."""
    imported = {normal_domain(entry.domain) for entry in proto.opset_import}
    if "" not in imported:
        proto.opset_import.add(domain="", version=DEFAULT_OPSET)
    used = [normal_domain(node.domain) for node in all_nodes(proto)] + [function.domain for function in proto.functions]
    for domain in dict.fromkeys(used):
        if domain not in {"", *imported}:
            proto.opset_import.add(domain=domain, version=1)
    if not proto.ir_version:
        proto.ir_version = ir_version_for(standard_opset(proto), bool(proto.functions))


def standard_opset(proto: ModelProto) -> int:
    """The version of the standard domain that the model imports; 0 if it imports none."""
    return next((entry.version for entry in proto.opset_import if not normal_domain(entry.domain)), 0)


def ir_version_for(opset: int, has_functions: bool = False) -> int:
    """The first IR version that has this opset of the standard domain; 8 at least where there are functions, else 7."""
    known = onnx.helper.OP_SET_ID_VERSION_MAP
    return max(8 if has_functions else 7, known.get(("ai.onnx", opset), max(known.values())))


def model_of(source: Source) -> Model:
    """The model that a test names: ONNX text, a path, a ModelProto, a Model, or a builder.

    A string with a brace in it is text, any other is a path.

    Raises:
        UsageError: the text does not parse, or the builder's graph is not complete.
        ModelError: the model cannot be read.
    """
    if isinstance(source, str) and "{" in source:
        return load(parse(source))
    if isinstance(source, (str, PathLike, ModelProto, Model)):
        return load(source)
    return load(source.model())


def content(model: Model) -> bytes:
    """The skeleton with a digest of each weight in the place of where it lies, which differs from run to run."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in stubs(proto):
        digest = _digest(model.tensor(tensor).tobytes())
        del tensor.external_data[:]
        tensor.external_data.add(key="digest", value=digest)
    return proto.SerializeToString(deterministic=True)


class Seal:
    """Remembers what a source holds, byte for byte, to tell later whether that has changed.

    A path's data files count too; of a text or a builder nothing has to be remembered.
    """

    def __init__(self, source: object, model: Model) -> None:
        self._source = source
        self._files = [Path(fspath(source))] if isinstance(source, (str, PathLike)) and model.path is not None else []
        if self._files:
            self._files += sorted({slice_of(tensor).path for tensor in stubs(model.proto)} - {model.path})
        self._held = self._digests()

    def broken(self) -> list[str]:
        """What has changed since: the proto, or the names of files."""
        return [name for name, digest in self._digests().items() if self._held.get(name) != digest]

    def _digests(self) -> dict[str, str]:
        if isinstance(self._source, Model):
            # not fingerprint(): a model remembers its bytes, and would not notice
            return {"the model": _digest(self._source.proto.SerializeToString(deterministic=True))}
        if isinstance(self._source, ModelProto):
            return {"the proto": _digest(self._source.SerializeToString(deterministic=True))}
        return {f"the file {path}": _digest(path.read_bytes()) if path.is_file() else "" for path in self._files}


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
