"""The contracts of MatMulNBits and GatherBlockQuantized: their bodies against ONNX Runtime's CPU kernels, and what both mean."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from rewright.model.load import load
from rewright.model.view import View
from rewright.ops.lowering import LOWERED_DOMAIN, lower
from rewright.quant.blocks import BlockFormat, packed, round_to_nearest
from rewright.shapes.walk import shapes_of
from tests.ops.one_node import run

RNG = np.random.default_rng(3)
FLOATS = {"float32": (np.float32, TensorProto.FLOAT, 2e-4), "float16": (np.float16, TensorProto.FLOAT16, 2e-2)}


def stored(count, width, bits, block_size, symmetric, dtype):
    """The constants of a random matrix (count, width), and what they stand for."""
    form = BlockFormat(bits, block_size, symmetric, np.dtype(dtype))
    blocks = round_to_nearest(RNG.standard_normal((count, width)).astype(np.float32), form)
    points = None if symmetric else packed(blocks.zero_points, bits)
    return blocks, points, blocks.dequantized(width)


def model_of(op, inputs, constants, kind, opset, **attributes):
    """A model of one node; ``inputs`` by name, of the constants or of the graph."""
    given = {name: value for name, value in inputs.items() if name not in constants and value is not None}
    node = helper.make_node(
        op, [name if inputs[name] is not None else "" for name in inputs], ["y"], domain="com.microsoft", **attributes
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim) for k, v in given.items()],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(inputs[name], name) for name in constants],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8), given


def agrees(proto, given, expected, tolerance):
    body = lower(load(proto), every=True).proto
    assert [node.domain for node in body.graph.node] == [LOWERED_DOMAIN]
    for found in (run(proto, given)[0], run(body, given)[0]):
        assert found.shape == expected.shape
        np.testing.assert_allclose(np.float32(found), expected, rtol=tolerance, atol=10 * tolerance)
    view = View(load(proto))
    shapes_of(view).refresh()
    node = next(node for node in view.graph.nodes if node.domain)
    assert node.outputs[0].dtype == expected_dtype(proto)
    assert len(node.outputs[0].shape) == expected.ndim
    assert node.outputs[0].shape[-1] == expected.shape[-1]


def expected_dtype(proto):
    return helper.tensor_dtype_to_np_dtype(proto.graph.output[0].type.tensor_type.elem_type)


CASES = list(itertools.product((1, 33, 64), (16, 32), (4, 8), (True, False)))


@pytest.mark.parametrize(("width", "block_size", "bits", "symmetric"), CASES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_matmul_n_bits(width, block_size, bits, symmetric, dtype) -> None:
    kind, elem_type, tolerance = FLOATS[dtype]
    blocks, points, weight = stored(5, width, bits, block_size, symmetric, kind)
    for shape, opset in (((width,), 13), ((2, width), 17), ((2, 3, width), 21)):
        given = RNG.standard_normal(shape).astype(kind)
        bias = np.arange(5, dtype=kind) if len(shape) > 1 else None
        inputs = {"a": given, "b": packed(blocks.codes, bits), "s": blocks.scales, "z": points, "g": None, "c": bias}
        constants = [name for name in "bszc" if inputs[name] is not None]
        proto, feeds = model_of(
            "MatMulNBits", inputs, constants, elem_type, opset, K=width, N=5, bits=bits, block_size=block_size
        )
        agrees(proto, feeds, np.float32(given) @ weight.T + (0 if bias is None else np.float32(bias)), tolerance)


@pytest.mark.parametrize(("width", "block_size", "bits", "symmetric"), [case for case in CASES if not case[0] % 2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_gather_block_quantized(width, block_size, bits, symmetric, dtype) -> None:
    kind, elem_type, tolerance = FLOATS[dtype]
    for width_ in (width, width - 2):
        blocks, points, table = stored(7, width_, bits, block_size, symmetric, kind)
        data = packed(blocks.codes.reshape(7, -1)[:, :width_], bits)
        for ids in (np.asarray(3), np.asarray([[0, -1], [6, 2]], np.int32), np.zeros((2, 0), np.int64)):
            inputs = {"d": data, "i": ids, "s": blocks.scales, "z": points}
            constants = [name for name in "dsz" if inputs[name] is not None]
            proto, feeds = model_of(
                "GatherBlockQuantized", inputs, constants, elem_type, 17, bits=bits, block_size=block_size,
                gather_axis=0, quantize_axis=1,
            )  # fmt: skip
            agrees(proto, feeds, table[ids], tolerance)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("MatMulNBits", ("a", "b", "s", "z", "g"), {"K": 32, "N": 4, "block_size": 32}),
        ("MatMulNBits", ("a", "b", "s"), {"K": 32, "N": 4, "block_size": 32, "bits": 2}),
        ("MatMulNBits", ("a", "b", "s"), {"K": 32, "N": 4, "block_size": 32, "weight_prepacked": 1}),
        ("GatherBlockQuantized", ("d", "i", "s"), {"block_size": 32}),
        ("GatherBlockQuantized", ("d", "i", "s"), {"block_size": 32, "bits": 4, "gather_axis": 1}),
    ],
)
def test_what_the_bodies_do_not_describe_is_left(op, inputs, attributes) -> None:
    node = helper.make_node(op, list(inputs), ["y"], domain="com.microsoft", **attributes)
    typed = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    graph = helper.make_graph([node], "one", typed, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)])
    assert lower(load(proto), every=True).proto.graph.node[0].op_type == op
