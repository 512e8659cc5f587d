"""The child's side of ``onnxruntime.quantization``: one model in, one file out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import onnx
from onnx import ModelProto, TensorProto

from rewright.model.carrier import all_graphs, all_nodes

_KEPT: Final = "rewright.kept"
_OPS: Final = ("MatMul", "Gather", "Attention", "LSTM")


def quantize_dynamic(model: bytes, arguments: dict[str, Any]) -> str:
    """Lets ONNX Runtime's dynamic quantizer write the quantized model into a folder.

    Products of activations stay floats (MatMulConstBOnly) and bodies are processed (EnableSubgraph). Of what it would do beside
    that, nothing happens: each Gemm stays as it is, whose weights it transposes, chosen or not; names stay.

    Args:
        model: a serialized ModelProto.
        arguments: "folder" to write to; "root", what external data is relative to; "outputs", the first outputs of the nodes to
            quantize; "per_channel", "reduce_range", "symmetric"; "weight", "int8" or "uint8".

    Returns:
        the path of the file.

    Raises:
        Exception: what the quantizer says of a model that it cannot take.
    """
    from onnxruntime.quantization import QuantizationMode, QuantType
    from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

    proto, chosen = unpacked(model, arguments)
    hidden = list(_hide(proto, set(chosen)))
    quantizer = ONNXQuantizer(
        proto,
        arguments["per_channel"],
        arguments["reduce_range"],
        QuantizationMode.IntegerOps,
        False,
        QuantType.QInt8 if arguments["weight"] == "int8" else QuantType.QUInt8,
        QuantType.QUInt8,
        None,
        chosen,
        [],
        list(_OPS),
        {
            "MatMulConstBOnly": True,
            "EnableSubgraph": True,
            "WeightSymmetric": arguments["symmetric"],
            "DefaultTensorType": TensorProto.FLOAT,  # nodes whose weights are anything else are not chosen
        },
    )
    quantizer.quantize_model()
    made = quantizer.model.model
    _show(made, hidden)
    target = Path(arguments["folder"]) / "quantized.onnx"
    onnx.save_model(made, target, save_as_external_data=True, location="quantized.onnx.data", size_threshold=1024)
    return str(target)


def unpacked(model: bytes, arguments: dict[str, Any]) -> tuple[ModelProto, list[str]]:
    """The model with its weights in it, and the names of the nodes that are to be quantized."""
    proto = ModelProto.FromString(model)
    onnx.load_external_data_for_model(proto, arguments["root"])
    for graph in all_graphs(proto):
        for tensor in graph.initializer:
            _inline(tensor)
    names = dict(_named(proto))
    return proto, [names[output] for output in arguments["outputs"]]


def _inline(tensor: TensorProto) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _named(proto: ModelProto) -> Iterator[tuple[str, str]]:
    """First output and name of each node; those without a name of their own get one, for the quantizer chooses by name."""
    seen: set[str] = set()
    for node in all_nodes(proto):
        base = node.name or next(filter(None, node.output), node.op_type)
        node.name = next(name for name in _numbered(base) if name not in seen)
        seen.add(node.name)
        yield next(filter(None, node.output), ""), node.name


def _numbered(base: str) -> Iterator[str]:
    yield base
    yield from (f"{base}_{number}" for number in count(1))


def _hide(proto: ModelProto, chosen: set[str]) -> Iterator[tuple[str, str, str]]:
    """Puts what the quantizer must not touch into a domain that it does not know; yields name, op and domain."""
    for node in all_nodes(proto):
        if node.op_type in ("Gemm", *_OPS) and node.name not in chosen:
            yield node.name, node.op_type, node.domain
            node.op_type, node.domain = f"Kept{node.op_type}", _KEPT
    proto.opset_import.append(onnx.helper.make_opsetid(_KEPT, 1))


def _show(proto: ModelProto, hidden: list[tuple[str, str, str]]) -> None:
    were = {name: (op, domain) for name, op, domain in hidden}
    for graph in all_graphs(proto):
        for node in graph.node:
            if node.domain == _KEPT:
                node.op_type, node.domain = were[node.name]
    kept = [entry for entry in proto.opset_import if entry.domain != _KEPT]
    imports = ModelProto(opset_import=kept)
    del proto.opset_import[:]
    proto.opset_import.extend(imports.opset_import)
