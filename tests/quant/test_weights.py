"""Weights that are reached through steps which only move or convert them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, parser

from rewright.model.load import load
from rewright.model.view import View
from rewright.quant.weights import weight_of

W = "1,2,3,4,5,6,7,8,9,10,11,12"
STEPS = {
    "itself": "b = Identity(w)",
    "transpose": "t = Transpose<perm = [1, 0]>(w)  b = Transpose(t)",
    "reshape": "shape = Constant<value_ints = [0, -1]>()  b = Reshape(w, shape)",
    "flatten and unsqueeze": "axes = Constant<value_ints = [0]>()  u = Unsqueeze(w, axes)  b = Flatten<axis = 2>(u)",
    "squeeze": "axes = Constant<value_ints = [1]>()  u = Unsqueeze(w, axes)  b = Squeeze(u, axes)",
    "cast": "h = Cast<to = 10>(w)  b = Cast<to = 1>(h)",
    "constant node": "k = Constant<value = float[3, 4] {" + W + "}>()  b = Identity(k)",
}


def model_of(steps: str) -> ModelProto:
    return parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 3] x, float[3, 4] v) => (float[N, 4] y, float[A, B] z)
        <float[3, 4] w = {{{W}}}> {{ {steps}  y = MatMul(x, b)  z = Identity(b) }}""")


def operand(model: ModelProto) -> Any:
    view = View(load(model))
    return next(node for node in view.graph.nodes if node.op == "MatMul").inputs[1]


@pytest.mark.parametrize("name", STEPS)
def test_the_weight_is_what_onnx_runtime_computes(name: str) -> None:
    model = model_of(STEPS[name])
    found = weight_of(operand(model))
    assert found is not None
    session = ort.InferenceSession(model.SerializeToString())
    wanted = session.run(["z"], {"x": np.zeros((1, 3), np.float32), "v": np.zeros((3, 4), np.float32)})[0]
    np.testing.assert_array_equal(found.values(), wanted)


@pytest.mark.parametrize("steps", ["b = Identity(v)", "r = Relu(w)  b = Identity(r)", "s = Shape(v)  b = Reshape(w, s)"])
def test_what_is_not_known_or_computed_is_no_weight(steps: str) -> None:
    assert weight_of(operand(model_of(steps))) is None


def test_tied_weights_have_one_source_and_equal_keys_where_they_hold_the_same() -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) <float[3, 4] w = {{{W}}}> {{
        i = Identity(w)  a = MatMul(x, i)  t = Transpose(w)  b = MatMul(a, t)  c = MatMul(b, w)  u = Transpose<perm = [1, 0]>(w)
        y = MatMul(c, u) }}"""
    view = View(load(parser.parse_model(text)))
    found = [weight_of(node.inputs[1]) for node in view.graph.nodes if node.op == "MatMul"]
    first, second, third, fourth = [each for each in found if each is not None]
    assert len({id(each.source) for each in (first, second, third, fourth)}) == 1
    assert first.key == third.key
    assert first.key != second.key
    np.testing.assert_array_equal(second.values(), fourth.values())
