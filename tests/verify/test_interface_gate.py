"""What a caller sees must not change."""

import onnx
import pytest

from rewright.verify.interface import check_interface

TEXT = """g (float[batch, 4] x, int64[batch] ids, float[2] w) => (float[batch, 4] y, int64[batch] z) <float[2] w = {1, 2}> {
    y = Relu(x) z = Identity(ids)
}"""


def changed(model, change):
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    change(proto.graph)
    return model.with_proto(proto)


def test_the_same_interface_passes(parse):
    assert check_interface(parse(TEXT), parse(TEXT)).status == "passed"


def reorder(graph):
    graph.output.append(graph.output[0])
    del graph.output[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda g: g.input.__delitem__(1), "input 'ids' is gone"),
        (lambda g: g.output.add(name="extra"), "output 'extra' is new"),
        (reorder, "outputs are reordered: ['z', 'y'] instead of ['y', 'z']"),
        (lambda g: g.input.append(g.input[0]), "inputs are repeated"),
        (
            lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 10),
            "input 'x' is float16[batch, 4] instead of float[batch, 4]",
        ),
        (
            lambda g: setattr(g.output[0].type.tensor_type.shape.dim[0], "dim_value", 2),
            "output 'y' is float[2, 4] instead of float[batch, 4]",
        ),
        (
            lambda g: setattr(g.output[0].type.tensor_type.shape.dim[0], "dim_param", "b"),
            "output 'y' is float[b, 4] instead of float[batch, 4]",
        ),
        (
            lambda g: g.output[0].type.tensor_type.ClearField("shape"),
            "output 'y' is float of unknown rank instead of float[batch, 4]",
        ),
        (lambda g: g.initializer.__delitem__(0), "input 'w' lost its default"),
        (lambda g: g.initializer.add(name="ids", data_type=7, dims=[1], int64_data=[0]), "input 'ids' got a default"),
    ],
)
def test_every_difference_is_named(parse, change, problem):
    before = parse(TEXT)
    evidence = check_interface(before, changed(before, change))
    assert evidence.status == "failed"
    assert problem in evidence.reason
