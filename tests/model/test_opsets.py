"""Raising the opset: only where every node means the same at the new version."""

from itertools import pairwise

import onnx
import pytest
from onnx import helper
from onnx.parser import parse_model

from rewright.model import opsets
from rewright.model.load import load
from rewright.model.view import View

NEUTRAL = {
    ("Shape", "start"): 0,
    ("Shape", "end"): None,
    ("Reshape", "allowzero"): 0,
    ("ScatterElements", "reduction"): b"none",
    ("ScatterND", "reduction"): b"none",
    ("ArgMax", "select_last_index"): 0,
    ("ArgMin", "select_last_index"): 0,
    ("GatherND", "batch_dims"): 0,
    ("GRU", "layout"): 0,
    ("LSTM", "layout"): 0,
    ("RNN", "layout"): 0,
    ("BatchNormalization", "training_mode"): 0,
    **{("Constant", f"value_{kind}"): None for kind in ("float", "floats", "int", "ints", "string", "strings")},
}
"""Attributes that later versions add, and the default that means what was meant before."""


def versions(op):
    """The schemas of the op that opsets 11 to 17 have, in order."""
    found = {}
    for opset in range(opsets.REVIEWED_FROM, opsets.REVIEWED_UP_TO + 1):
        if onnx.defs.has(op, opset):
            schema = onnx.defs.get_schema(op, opset, "")
            found[schema.since_version] = schema
    return list(found.values())


def view_of(body="y = Relu(x)", opset=13, ir=7, signature="float[2, 3] x) => (float[2, 3] y", after=""):
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}, "own" : 1]> g ({signature}) {{ {body} }}{after}'
    return View(load(parse_model(text)))


@pytest.mark.parametrize("op", sorted(set(opsets.PURE_SUPERSETS) - {"LayerNormalization"}))
def test_each_listed_op_only_grows(op):
    """Inputs, outputs, attributes and element types of one version are among those of the next."""
    found = versions(op)
    assert len(found) > 1, "the op did not change: it needs no entry"
    for before, after in pairwise(found):
        for mine, theirs in zip(before.inputs, after.inputs, strict=False):
            assert set(mine.types) <= set(theirs.types)
        assert len(before.inputs) == len(after.inputs)
        assert op == "BatchNormalization" or len(before.outputs) <= len(after.outputs)
        for name, attribute in before.attributes.items():
            assert after.attributes[name].default_value == attribute.default_value
            assert after.attributes[name].required == attribute.required
        for name in set(after.attributes) - set(before.attributes):
            default = after.attributes[name].default_value
            assert NEUTRAL[op, name] == (helper.get_attribute_value(default) if default.name else None)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax", "Squeeze", "Unsqueeze", "Split", "ReduceSum", "RoiAlign"])
def test_ops_that_changed_their_meaning_or_form_are_not_listed(op):
    assert len(versions(op)) > 1
    assert op not in opsets.PURE_SUPERSETS


def test_what_grew_and_what_did_not_change_is_raised_with_the_ir_version():
    view = view_of("a = Add(x, x)\n s = Shape(a)\n r = Reshape(a, s)\n y = Softmax(r)")
    assert opsets.obstacle(view, 17) is None
    opsets.raise_to(view, 17)
    proto = view.to_model().proto
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17), ("own", 1)]
    assert proto.ir_version == helper.OP_SET_ID_VERSION_MAP[("ai.onnx", 17)]
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize(
    ("body", "opset", "reason"),
    [
        ("[s] y = Softmax(x)", 12, "Softmax 's' would mean something else at opset 17"),
        ("[u] u = Unsqueeze<axes = [0]>(x)\n [v] y = Squeeze<axes = [0]>(u)", 11, "Unsqueeze 'u' would mean something else"),
        ("[d] y = Dropout(x)", 11, "Dropout 'd' would mean something else"),
        ("y = Relu(x)", 10, "the changes before opset 11 were not reviewed, and the model is at 10"),
    ],
)
def test_what_changed_is_named(body, opset, reason):
    view = view_of(body, opset)
    assert reason in opsets.obstacle(view, 17)
    assert "were not reviewed" in opsets.obstacle(view, 18)


def test_bodies_are_looked_into():
    signature = "float[2, 3] x, bool c) => (float[2, 3] y"
    branches = (
        "then_branch = t () => (float[2, 3] p) { [inner] p = Softmax(x) }, else_branch = e () => (float[2, 3] q) { q = Abs(x) }"
    )
    view = view_of(f"y = If(c) <{branches}>", 12, signature=signature)
    assert "Softmax 'inner'" in opsets.obstacle(view, 17)


def test_functions_are_raised_as_well():
    function = '\n<domain: "own", opset_import: ["" : 13]> twice (a) => (b) { b = Add(a, a) }'
    view = view_of("y = own.twice(x)", 13, ir=8, after=function)
    assert opsets.obstacle(view, 17) is None
    opsets.raise_to(view, 17)
    proto = view.to_model().proto
    assert [entry.version for entry in proto.functions[0].opset_import] == [17]
    onnx.checker.check_model(proto, full_check=True)
    view = view_of("y = own.twice(x)", 13, ir=8, after=function.replace("13", "12").replace("Add(a, a)", "Softmax(a)"))
    assert "Softmax" in opsets.obstacle(view, 17)


def test_a_batch_normalisation_in_training_form_is_not_raised():
    norm = "y{} = BatchNormalization(x, s, s, s, s)"
    signature = "float[2, 3] x, float[3] s) => (float[2, 3] y"
    assert opsets.obstacle(view_of(norm.format(""), 13, signature=signature), 17) is None
    assert "BatchNormalization" in opsets.obstacle(view_of(norm.format(", m"), 13, signature=signature), 17)


def test_models_that_list_initializers_among_the_inputs_are_not_raised():
    assert "IR version is 3" in opsets.obstacle(view_of(ir=3), 17)


def test_ops_of_the_runtime_follow_no_opset():
    signature = "float[2, 3] x, float[3] s) => (float[2, 3] y"
    assert opsets.obstacle(view_of("y = SimplifiedLayerNormalization(x, s)", signature=signature), 17) is None
    assert opsets.obstacle(view_of("y = LayerNormalization(x, s)", signature=signature), 17) is None
