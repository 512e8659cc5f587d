"""The child's side of static quantization by ``onnxruntime.quantization``: one model and its ranges in, one file out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from rewright.model.regions import reads
from rewright.quant.deferred import unpacked

_TYPES: Final = {
    "int8": "QInt8",
    "uint8": "QUInt8",
    "int16": "QInt16",
    "uint16": "QUInt16",
    "int4": "QInt4",
    "uint4": "QUInt4",
}
_SUMS: Final = ("Add", "Mul")
_ROUNDED: Final = ("Conv", *_SUMS)
"""Ops whose results are rounded, for whoever reads them."""
_BIAS: Final = 2


def quantize_static(model: bytes, arguments: dict[str, Any]) -> str:
    """Lets ONNX Runtime's QDQ quantizer write the quantized model into a folder, by ranges that are given; it calibrates nothing.

    What MatMul and Gemm give stays float (OpTypesToExcludeOutputQuantization), so that integer kernels give floats at once. Who
    reads the operands of a chosen node as well, and is not chosen, goes on reading what it did.

    Args:
        model: a serialized ModelProto.
        arguments: "folder" to write to; "root", what external data is relative to; "outputs", the first outputs of the nodes to
            quantize; "ops", their ops; "ranges", [low, high] by value; "activation", "weight", "symmetric",
            "activation_symmetric", "per_channel", "reduce_range", "quantize_bias", "weight_pairs", "dedicated_pairs", see the
            options of the pass; "contrib_ops", whether to use com.microsoft's ops.

    Returns:
        the path of the file.

    Raises:
        Exception: what the quantizer says of a model that it cannot take.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    proto, chosen = unpacked(model, arguments)
    ranges = {name: (np.float32(low), np.float32(high)) for name, (low, high) in arguments["ranges"].items()}
    wanted = set(chosen)
    isolation = _Isolation(proto, [node for node in proto.graph.node if node.name in wanted])
    isolation.put_in()
    aliases = isolation.stands_for | isolation.stands_before
    ranges |= {alias: ranges[name] for alias, name in aliases.items() if name in ranges}
    _describe(proto, ranges)
    quantizer = QDQQuantizer(
        proto,
        arguments["per_channel"],
        arguments["reduce_range"],
        getattr(QuantType, _TYPES[arguments["weight"]]),
        getattr(QuantType, _TYPES[arguments["activation"]]),
        TensorsData(CalibrationMethod.MinMax, ranges),  # however they were found, they are two numbers now
        chosen,
        [],
        arguments["ops"],
        {
            "WeightSymmetric": arguments["symmetric"],
            "ActivationSymmetric": arguments["activation_symmetric"],
            "QuantizeBias": arguments["quantize_bias"],
            "AddQDQPairToWeight": arguments["weight_pairs"],
            "DedicatedQDQPair": arguments["dedicated_pairs"],
            "UseQDQContribOps": arguments["contrib_ops"],
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            "DefaultTensorType": TensorProto.FLOAT,  # nodes that compute in anything else are not chosen
        },
    )
    quantizer.quantize_model()
    made = quantizer.model.model
    isolation.take_out(made)
    target = Path(arguments["folder"]) / "quantized.onnx"
    onnx.save_model(made, target, save_as_external_data=True, location="quantized.onnx.data", size_threshold=1024)
    return str(target)


@dataclass
class _Isolation:
    """Operands of the chosen nodes that nobody else reads: the quantizer makes every reader of a value read it rounded.

    Activations get an Identity in between, and so do results that are rounded, and biases that are inputs with a default. Weights
    and biases get another name, as a copy where others read them as well, or along another axis. No other name begins like the
    new ones, and so none is what the quantizer makes of them.

    Attributes:
        stands_for: what was put in between before a node, and the value that it stands for.
        stands_before: what was put in between after a node, and the value that it gives.
    """

    proto: ModelProto
    nodes: list[NodeProto]
    stands_for: dict[str, str] = field(default_factory=dict)
    stands_before: dict[str, str] = field(default_factory=dict)
    _held: dict[str, TensorProto] = field(default_factory=dict)
    _given: set[str] = field(default_factory=set)
    _defaults: list[TensorProto] = field(default_factory=list)
    _domains: dict[str, str] = field(default_factory=dict)
    _suffix: str = ""

    def __post_init__(self) -> None:
        graph = self.proto.graph
        self._given = {value.name for value in graph.input}  # an initializer of theirs is a default, and no constant
        self._held = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in self._given}
        defaults = [tensor for tensor in graph.initializer if tensor.name in self._given]
        self._defaults = [TensorProto.FromString(tensor.SerializeToString()) for tensor in defaults]
        self._domains = {node.name: node.domain for node in graph.node}
        names = [*self._given, *self._held, *(name for node in graph.node for name in (*node.input, *node.output, node.name))]
        self._suffix = next(found for found in map("/levels{}".format, count()) if not any(found in name for name in names))

    def put_in(self) -> None:
        """Changes the operands and results."""
        self._rename_constants()
        for node in self.nodes:
            if node.op_type in _ROUNDED:
                self.stands_before[node.output[0] + self._suffix] = node.output[0]
        rounded = set(self.stands_before.values())
        for node in self.nodes:
            for index in (0, 1) if node.op_type in _SUMS else (0,):
                name = node.input[index]
                node.input[index] = name + self._suffix
                if name not in rounded:
                    self.stands_for[name + self._suffix] = name
            if node.op_type not in _SUMS and len(node.input) > _BIAS and node.input[_BIAS] in self._given:
                self.stands_for[node.input[_BIAS] + self._suffix] = node.input[_BIAS]
                node.input[_BIAS] += self._suffix
            if node.op_type in _ROUNDED:
                node.output[0] += self._suffix
        self._put_identities()

    def _rename_constants(self) -> None:
        graph = self.proto.graph
        readers = Counter(name for node in graph.node for name in reads(node)) + Counter(value.name for value in graph.output)
        uses = Counter(use for node in self.nodes for use in _constant_uses(node, self._held))
        known: dict[tuple[str, Any], str] = {}
        for node in self.nodes:
            for index, use in enumerate(_constant_uses(node, self._held), start=1):
                if use not in known:
                    name = use[0]
                    tensor = self._held[name]
                    if readers[name] != uses[use]:
                        tensor = graph.initializer.add()
                        tensor.CopyFrom(self._held[name])
                    known[use] = tensor.name = f"{name}{self._suffix}/{len(known)}"
                node.input[index] = known[use]

    def _put_identities(self) -> None:
        before: dict[str, list[NodeProto]] = {}
        for alias, name in self.stands_for.items():
            before.setdefault(name, []).append(helper.make_node("Identity", [name], [alias], name=alias))
        for alias, name in self.stands_before.items():
            before.setdefault(alias, []).append(helper.make_node("Identity", [alias], [name], name=alias))
        made = {name for node in self.proto.graph.node for name in node.output}
        made.update(self.stands_before.values())
        ordered = [node for name, nodes in before.items() if name not in made for node in nodes]
        for node in self.proto.graph.node:
            pending = [node]
            while pending:
                ordered.append(pending.pop())
                pending.extend(other for name in ordered[-1].output for other in before.get(name, ()))
        _replace(self.proto.graph.node, ordered)

    def take_out(self, proto: ModelProto) -> None:
        """Takes out what was put in between, of what the quantizer made of the model."""
        graph = proto.graph
        between = {*self.stands_for, *self.stands_before}
        renamed = dict(self.stands_for)
        renamed |= {
            node.input[0]: node.output[0] for node in graph.node if node.op_type == "Identity" and node.name in self.stands_before
        }
        held = {tensor.name for tensor in graph.initializer}
        graph.initializer.extend(tensor for tensor in self._defaults if tensor.name not in held)  # it drops those nobody reads
        kept = [node for node in graph.node if node.name not in between or node.op_type != "Identity"]
        for node in kept:
            node.domain = self._domains.get(node.name, node.domain)  # it loses those of nodes with bodies
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    names[index] = renamed.get(name, name)
        _replace(graph.node, kept)
        _replace(graph.value_info, [value for value in graph.value_info if value.name not in between])


def _constant_uses(node: NodeProto, held: dict[str, TensorProto]) -> list[tuple[str, Any]]:
    """Weight and bias of a product or a convolution, as far as they are initializers: name, and what makes uses alike."""
    if node.op_type in _SUMS:
        return []
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    uses: list[tuple[str, Any]] = [(node.input[1], 0 if turned or node.op_type == "Conv" else 1)]
    if len(node.input) > _BIAS and node.input[_BIAS] in held:
        uses.append((node.input[_BIAS], node.name))  # its scale depends on what else the node reads
    return uses


def _replace(field: Any, messages: list[Any]) -> None:
    kept = [type(each).FromString(each.SerializeToString()) for each in messages]
    del field[:]
    field.extend(kept)


def _describe(proto: ModelProto, ranges: dict[str, Any]) -> None:
    """Says of each value that has a range that it is float32: the quantizer leaves values alone whose type it does not know."""
    graph = proto.graph
    known = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}
    made = {name for node in graph.node for name in node.output}
    for name in sorted(made.intersection(ranges) - known):
        graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
