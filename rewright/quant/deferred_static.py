"""The child's side of static quantization by ``onnxruntime.quantization``: one model and its ranges in, one file out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from rewright.model.carrier import all_graphs
from rewright.model.regions import reads
from rewright.quant.deferred import inline, named

_TYPES: Final = {
    "int8": "QInt8",
    "uint8": "QUInt8",
    "int16": "QInt16",
    "uint16": "QUInt16",
    "int4": "QInt4",
    "uint4": "QUInt4",
}
_SUMS: Final = ("Add", "Mul")
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
            options of the pass.

    Returns:
        the path of the file.

    Raises:
        Exception: what the quantizer says of a model that it cannot take.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    proto = ModelProto.FromString(model)
    onnx.load_external_data_for_model(proto, arguments["root"])
    for graph in all_graphs(proto):
        for tensor in graph.initializer:
            inline(tensor)
    names = dict(named(proto))
    chosen = [names[output] for output in arguments["outputs"]]
    ranges = {name: (np.float32(low), np.float32(high)) for name, (low, high) in arguments["ranges"].items()}
    stands_for = _isolate(proto, set(chosen))
    ranges |= {alias: ranges[name] for alias, name in stands_for.items()}
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
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            "DefaultTensorType": TensorProto.FLOAT,  # nodes that compute in anything else are not chosen
        },
    )
    quantizer.quantize_model()
    made = quantizer.model.model
    _join(made, stands_for)
    target = Path(arguments["folder"]) / "quantized.onnx"
    onnx.save_model(made, target, save_as_external_data=True, location="quantized.onnx.data", size_threshold=1024)
    return str(target)


def _isolate(proto: ModelProto, chosen: set[str]) -> dict[str, str]:
    """Gives the chosen nodes operands that nobody else reads: the quantizer makes every reader of a value read it rounded.

    Activations get an Identity in between; weights and biases that others read as well, or along another axis, a copy.

    Returns:
        what was put in between, and the value that it stands for.
    """
    graph = proto.graph
    nodes = [node for node in graph.node if node.name in chosen]
    held = {tensor.name: tensor for tensor in graph.initializer}
    rounded = {node.output[0] for node in nodes if node.op_type in ("Conv", *_SUMS)}  # for whoever reads them
    readers = Counter(name for node in graph.node for name in reads(node)) + Counter(value.name for value in graph.output)
    uses = Counter(use for node in nodes for use in _constant_uses(node, held))
    taken = set(held) | set(readers) | {name for node in graph.node for name in node.output}
    aliases: dict[str, str] = {}
    copies: dict[tuple[str, Any], str] = {}
    for node in nodes:
        for index in (0, 1) if node.op_type in _SUMS else (0,):
            name = node.input[index]
            if name not in rounded:
                node.input[index] = aliases.setdefault(name, _fresh(f"{name}/as_operand", taken))
        for index, use in enumerate(_constant_uses(node, held), start=1):
            if readers[use[0]] == uses[use]:
                continue
            if use not in copies:
                copies[use] = _fresh(f"{use[0]}/as_operand", taken)
                graph.initializer.add().CopyFrom(held[use[0]])
                graph.initializer[-1].name = copies[use]
            node.input[index] = copies[use]
    between = [helper.make_node("Identity", [name], [alias], name=alias) for name, alias in aliases.items()]
    _put_after_makers(proto, between)
    return {alias: name for name, alias in aliases.items()}


def _constant_uses(node: NodeProto, held: dict[str, TensorProto]) -> list[tuple[str, Any]]:
    """Weight and bias of a product or a convolution, as far as they are initializers: name, and what makes uses alike."""
    if node.op_type in _SUMS:
        return []
    turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    uses: list[tuple[str, Any]] = [(node.input[1], 0 if turned or node.op_type == "Conv" else 1)]
    if len(node.input) > _BIAS and node.input[_BIAS] in held:
        uses.append((node.input[_BIAS], node.name))  # its scale depends on what else the node reads
    return uses


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _put_after_makers(proto: ModelProto, between: list[NodeProto]) -> None:
    waiting: dict[str, NodeProto] = {node.input[0]: node for node in between}
    ordered = [waiting.pop(name) for name in list(waiting) if not any(name in node.output for node in proto.graph.node)]
    for node in proto.graph.node:
        ordered.append(node)
        ordered.extend(waiting.pop(name) for name in node.output if name in waiting)
    kept = ModelProto()
    kept.graph.node.extend(ordered)
    del proto.graph.node[:]
    proto.graph.node.extend(kept.graph.node)


def _describe(proto: ModelProto, ranges: dict[str, Any]) -> None:
    """Says of each value that has a range that it is float32: the quantizer leaves values alone whose type it does not know."""
    graph = proto.graph
    known = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}
    made = {name for node in graph.node for name in node.output}
    for name in sorted(made.intersection(ranges) - known):
        graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _join(proto: ModelProto, stands_for: dict[str, str]) -> None:
    """Takes out again what ``_isolate`` has put in between."""
    kept = [node for node in proto.graph.node if node.name not in stands_for or node.op_type != "Identity"]
    for node in kept:
        for index, name in enumerate(node.input):
            if name in stands_for:
                node.input[index] = stands_for[name]
    described = [value for value in proto.graph.value_info if value.name not in stands_for]
    rest = ModelProto()
    rest.graph.node.extend(kept)
    rest.graph.value_info.extend(described)
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.node.extend(rest.graph.node)
    proto.graph.value_info.extend(rest.graph.value_info)
