"""Weights quantized by ``onnxruntime.quantization``: its MatMulNBitsQuantizer on one MatMul at a time, in the child process.

It never sees the model, so that what it does to nodes with bodies (it drops their domain), and to weights that several nodes read
(it stores them once for each), does not happen; and memory holds a slice of one weight.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from rewright.passes.ort.exchange import call
from rewright.passes.session import PassSession
from rewright.quant.blocks import Array, BlockFormat, Blocks, unpacked
from rewright.quant.matrices import Method

_QUANTIZE: Final = "rewright.quant.ort_blocks:quantize"


def ort_method(session: PassSession, algorithm: str) -> Method:
    """How ONNX Runtime quantizes rows, by "rtn" or "hqq". The zero points of "hqq" are floats, which MatMulNBits takes too.

    The method raises NotCarriedOut where ONNX Runtime does not do it: its "hqq" needs torch.
    """

    def method(rows: Array, form: BlockFormat) -> Blocks:
        folder = Path(tempfile.mkdtemp(prefix="ort-", dir=session.view.model.files.scratch))
        try:
            np.save(folder / "weight.npy", np.ascontiguousarray(rows.T, form.dtype))
            arguments = {
                "folder": str(folder),
                "bits": form.bits,
                "block_size": form.block_size,
                "symmetric": form.symmetric,
                "algorithm": algorithm,
            }
            call(session, _QUANTIZE, b"", arguments)
            return _blocks(folder, len(rows), rows.shape[1], form)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return method


def _blocks(folder: Path, count: int, width: int, form: BlockFormat) -> Blocks:
    with np.load(folder / "blocks.npz", allow_pickle=False) as found:
        shape = count, form.blocks_of(width)
        codes = unpacked(found["B"].reshape(*shape, -1), form.bits, form.block_size)
        scales = found["scales"].reshape(shape).astype(form.dtype)
        if "zero_points" not in found:
            return Blocks(codes, scales, np.full(shape, form.middle, np.uint8))
        points = found["zero_points"]
        if points.dtype.kind == "f":
            return Blocks(codes, scales, points.reshape(shape).astype(form.dtype))
        return Blocks(codes, scales, unpacked(points.reshape(count, -1), form.bits, shape[1]))


def quantize(model: bytes, arguments: Mapping[str, Any]) -> int:
    """The child's side: quantizes weight.npy (K, N) of the folder, and writes what MatMulNBits reads to blocks.npz there.

    Returns:
        bytes of the codes.

    Raises:
        ImportError: what the algorithm needs is not installed.
        RuntimeError: ONNX Runtime left the MatMul as it was.
    """
    from onnx import helper, numpy_helper
    from onnxruntime.quantization import matmul_nbits_quantizer as ort

    folder = Path(arguments["folder"])
    weight = np.load(folder / "weight.npy")
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["A", "W"], ["Y"], name="MatMul")],
        "weight",
        [helper.make_tensor_value_info("A", kind, [1, weight.shape[0]])],
        [helper.make_tensor_value_info("Y", kind, [1, weight.shape[1]])],
        [numpy_helper.from_array(weight, "W")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    bits, size = arguments["bits"], arguments["block_size"]
    config = None
    if arguments["algorithm"] == "hqq":
        config = ort.HQQWeightOnlyQuantConfig(block_size=size, bits=bits)
    quantizer = ort.MatMulNBitsQuantizer(
        proto, bits=bits, block_size=size, is_symmetric=arguments["symmetric"], accuracy_level=0, algo_config=config
    )
    quantizer.process()
    result = quantizer.model.model.graph
    node = next((node for node in result.node if node.op_type == "MatMulNBits"), None)
    if node is None:
        raise RuntimeError("ONNX Runtime left the weight as it was")
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.initializer}
    found = {what: held[name] for what, name in zip(("B", "scales", "zero_points"), node.input[1:], strict=False) if name}
    np.savez(folder / "blocks.npz", **found)  # type: ignore[arg-type]
    return int(found["B"].nbytes)
