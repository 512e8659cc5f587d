"""The model: an immutable skeleton plus the files that hold its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
from google.protobuf.message import Message
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from rewright.model.weights import SESSION_FOLDER, WeightFiles, external_entries, is_stub

NodeLists: TypeAlias = list[tuple[GraphProto | FunctionProto, list[NodeProto]]]


@dataclass(frozen=True, eq=False)
class Model:
    """A model that passes rewrite.

    ``proto`` is the skeleton: every initializer of 1 KiB or more is a typed stub, so copying, hashing, checking and
    inferring cost O(nodes). It is never mutated; a change is a new Model made by ``with_proto``. Snapshot and rollback are
    therefore nothing but keeping a reference.

    Attributes:
        proto: the skeleton.
        files: the weight files, shared by all models that stem from the same source.
        path: the file that the model was loaded from, or None.
        has_external_data: whether the source kept its weights in a separate file; ``save`` then does so too.
        _walked: its node lists, from whoever has walked ``proto`` already.
    """

    SESSION_FOLDER: ClassVar[str] = SESSION_FOLDER

    proto: ModelProto
    files: WeightFiles = field(repr=False)
    path: Path | None = None
    has_external_data: bool = False
    _walked: NodeLists | None = field(default=None, repr=False)

    def with_proto(self, proto: ModelProto) -> Model:
        """The same weight files under another skeleton, which the new model owns from here on."""
        return Model(proto, self.files, self.path, self.has_external_data)

    @cached_property
    def node_lists(self) -> NodeLists:
        """Every list of nodes; walked once."""
        return self._walked if self._walked is not None else node_lists(self.proto)

    @cached_property
    def _serialized(self) -> bytes:
        return self.proto.SerializeToString(deterministic=True)

    def fingerprint(self, *, with_facts: bool = True) -> str:
        """A hash of the skeleton; two models with equal fingerprints compute the same.

        ``with_facts``: whether what is written beside inner values, their types and shapes, counts.
        """
        if with_facts:
            return hashlib.blake2b(self._serialized, digest_size=16).hexdigest()
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        del proto.graph.value_info[:]
        return self.with_proto(proto).fingerprint()

    def session_bytes(self) -> bytes:
        """The serialized skeleton, for an ONNX Runtime session.

        Set ``session.model_external_initializers_file_folder_path`` to ``Model.SESSION_FOLDER``: the weights are then mapped.
        """
        return self._serialized

    def tensor(self, tensor: TensorProto) -> np.ndarray[Any, Any]:
        """The values of a tensor of this model, read-only, mapped where they lie in a file."""
        return self.files.array(tensor)

    def op_counts(self) -> dict[str, int]:
        """How often each op occurs, bodies and functions included, as ``{"ai.onnx::MatMul": 12, ...}``."""
        return dict(self._op_counts)

    @cached_property
    def _op_counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for _, nodes in self.node_lists:
            for node in nodes:
                key = f"{node.domain or 'ai.onnx'}::{node.op_type}"
                counts[key] = counts.get(key, 0) + 1
        return dict(sorted(counts.items()))

    def node_count(self) -> int:
        """Nodes of the graph, of its bodies and of its functions."""
        return sum(self._op_counts.values())

    def nbytes(self) -> int:
        """Bytes of the skeleton plus the bytes of each distinct weight."""
        slices = (external_entries(tensor) for tensor in stubs(self.node_lists))
        distinct = {(entries["location"], entries.get("offset", "0"), entries["length"]) for entries in slices}
        return len(self._serialized) + sum(int(length) for *_, length in distinct)

    def save(self, path: str | PathLike[str], external_data: bool | None = None) -> None:
        """Writes the model; see ``rewright.model.save.save``."""
        from rewright.model.save import save

        save(self, path, external_data)


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in the node's attributes."""
    return iter(_bodies_of((node,)))


def _bodies_of(nodes: Iterable[NodeProto]) -> list[GraphProto]:
    """The graphs in the nodes' attributes."""
    return [
        body
        for node in nodes
        for attribute in node.attribute
        if attribute.type in _HOLDS_GRAPHS
        for body in (attribute.graphs if attribute.type == AttributeProto.GRAPHS else (attribute.g,))
    ]


_HOLDS_GRAPHS: Final = (AttributeProto.GRAPH, AttributeProto.GRAPHS)


def all_graphs(proto: ModelProto) -> Iterator[GraphProto]:
    """The main graph and every body below it and below the functions; iterative, parents first."""
    pending = [proto.graph]
    for function in proto.functions:
        pending.extend(_bodies_of(function.node))
    while pending:
        graph = pending.pop()
        yield graph
        pending.extend(_bodies_of(graph.node))


def all_nodes(proto: ModelProto) -> Iterator[NodeProto]:
    """Every node: main graph, bodies, functions."""
    for _, nodes in node_lists(proto):
        yield from nodes


def node_lists(proto: ModelProto) -> NodeLists:
    """Every graph, body and function with its nodes."""
    owners: list[GraphProto | FunctionProto] = [*all_graphs(proto), *proto.functions]
    return [(owner, list(owner.node)) for owner in owners]


def stubs(model: ModelProto | NodeLists) -> Iterator[TensorProto]:
    """Every tensor of the model whose bytes are in a file: initializers, and the values of Constant nodes."""
    for owner, nodes in node_lists(model) if isinstance(model, ModelProto) else model:
        if isinstance(owner, GraphProto):
            yield from (tensor for tensor in owner.initializer if is_stub(tensor))
        for node in nodes:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.type == AttributeProto.TENSOR and is_stub(attribute.t):
                        yield attribute.t


def copy_field(source: Message, target: Message, name: str) -> None:
    """Copies one field of a message into another of the same type, where it is not set yet."""
    value = getattr(source, name)
    if hasattr(value, "extend"):
        getattr(target, name).extend(value)
    elif hasattr(value, "CopyFrom"):
        getattr(target, name).CopyFrom(value)
    else:
        setattr(target, name, value)
