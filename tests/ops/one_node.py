"""One fused node on ONNX Runtime: through its CPU kernel, and through the body in its contract."""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from rewright.model.load import load
from rewright.ops.lowering import LOWERED_DOMAIN, lower

MICROSOFT = "com.microsoft"


def one_node(op, inputs, ranks, opset=17, domain=MICROSOFT, kind=None, **attributes):
    """A model of one node; ``inputs`` by name in the op's order, None where omitted; ``ranks`` of its outputs, and their dtype
    where it is not that of the first input."""
    names = [name if value is not None else "" for name, value in inputs.items()]
    outputs = [f"out{number}" for number in range(len(ranks))]
    node = helper.make_node(op, names[: 1 + max(i for i, name in enumerate(names) if name)], outputs, domain=domain, **attributes)
    values = feeds(inputs)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(kind or next(iter(values.values())).dtype))
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim)
            for name, value in values.items()
        ],
        [helper.make_tensor_value_info(name, kind, [None] * rank) for name, rank in zip(outputs, ranks, strict=True)],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def feeds(inputs):
    return {name: np.asarray(value) for name, value in inputs.items() if value is not None}


def run(proto, inputs):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds(inputs))


def kernel(op, inputs, ranks=(3,), **kwargs):
    """What the CPU kernel computes."""
    return run(one_node(op, inputs, ranks, **kwargs), inputs)


def lowered(op, inputs, ranks=(3,), **kwargs):
    """The model with the node's body in its place."""
    proto = lower(load(one_node(op, inputs, ranks, **kwargs)), every=True).proto
    assert [node.domain for node in proto.graph.node] == [LOWERED_DOMAIN]
    onnx.checker.check_model(proto, full_check=True)
    return proto


def assert_body_is_kernel(op, inputs, ranks=(3,), tolerance=1e-5, **kwargs):
    """Equal shapes, NaN in the same places, close numbers."""
    expected = kernel(op, inputs, ranks, **kwargs)
    found = run(lowered(op, inputs, ranks, **kwargs), inputs)
    for left, right in zip(found, expected, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        np.testing.assert_allclose(np.float64(left), np.float64(right), rtol=tolerance, atol=tolerance)
    return expected
