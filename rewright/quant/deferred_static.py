"""The child's side of static quantization by ``onnxruntime.quantization``: one model and its ranges in, one file out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from rewright.model.carrier import all_graphs
from rewright.quant.deferred import inline, named

_TYPES: Final = {
    "int8": "QInt8",
    "uint8": "QUInt8",
    "int16": "QInt16",
    "uint16": "QUInt16",
    "int4": "QInt4",
    "uint4": "QUInt4",
}


def quantize_static(model: bytes, arguments: dict[str, Any]) -> str:
    """Lets ONNX Runtime's QDQ quantizer write the quantized model into a folder, by ranges that are given; it calibrates nothing.

    What MatMul and Gemm give stays float (OpTypesToExcludeOutputQuantization), so that integer kernels give floats at once.

    Args:
        model: a serialized ModelProto.
        arguments: "folder" to write to; "root", what external data is relative to; "outputs", the first outputs of the nodes to
            quantize; "ops", their ops; "ranges", [low, high] by value; "activation", "weight", "symmetric",
            "activation_symmetric", "per_channel", "reduce_range", "quantize_bias", see the options of the pass.

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
    ranges = {name: (np.float32(low), np.float32(high)) for name, (low, high) in arguments["ranges"].items()}
    quantizer = QDQQuantizer(
        proto,
        arguments["per_channel"],
        arguments["reduce_range"],
        getattr(QuantType, _TYPES[arguments["weight"]]),
        getattr(QuantType, _TYPES[arguments["activation"]]),
        TensorsData(CalibrationMethod.MinMax, ranges),  # however they were found, they are two numbers now
        [names[output] for output in arguments["outputs"]],
        [],
        arguments["ops"],
        {
            "WeightSymmetric": arguments["symmetric"],
            "ActivationSymmetric": arguments["activation_symmetric"],
            "QuantizeBias": arguments["quantize_bias"],
            "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
            "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
            "DefaultTensorType": TensorProto.FLOAT,  # nodes that compute in anything else are not chosen
        },
    )
    quantizer.quantize_model()
    target = Path(arguments["folder"]) / "quantized.onnx"
    made = quantizer.model.model
    onnx.save_model(made, target, save_as_external_data=True, location="quantized.onnx.data", size_threshold=1024)
    return str(target)
