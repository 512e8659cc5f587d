"""The contracts of the com.microsoft ops: against the installed ONNX Runtime's registry, schemas and kernels."""

import itertools

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from rewright.model.load import load
from rewright.ops.contract import CONTRACTS
from rewright.ops.lowering import LOWERED_DOMAIN, lower
from rewright.ops.targets import unsupported

OURS = sorted(key for key, contract in CONTRACTS.items() if contract.domain == "com.microsoft")
ELEMENT_TYPES = {
    "float32": ("tensor(float)", TensorProto.FLOAT),
    "float16": ("tensor(float16)", TensorProto.FLOAT16),
    "bfloat16": ("tensor(bfloat16)", TensorProto.BFLOAT16),
    "float64": ("tensor(double)", TensorProto.DOUBLE),
}


def schema_of(contract):
    return next(s for s in state.get_all_operator_schema() if (s.domain, s.name) == (contract.domain, contract.op))


@pytest.mark.parametrize("key", OURS)
def test_the_cpu_table_is_what_onnxruntime_registers_and_its_schema_admits(key):
    contract = CONTRACTS[key]
    registered = {
        kind
        for kernel in state.get_all_opkernel_def()
        if (kernel.domain, kernel.op_name, kernel.provider) == (contract.domain, contract.op, "CPUExecutionProvider")
        for kind in kernel.type_constraints["T"]
    }
    admitted = set(next(t.allowed_type_strs for t in schema_of(contract).type_constraints if t.type_param_str == "T"))
    assert {ELEMENT_TYPES[name][0] for name in contract.kernels.get("cpu", ())} == registered & admitted


@pytest.mark.parametrize("key", OURS)
def test_names_and_attributes_are_the_schemas(key):
    contract, schema = CONTRACTS[key], schema_of(CONTRACTS[key])

    def names(parameters):
        return tuple(item.name + ("?" if item.option.name == "Optional" else "") for item in parameters)

    assert contract.inputs == names(schema.inputs)
    assert contract.outputs == names(schema.outputs)
    assert set(contract.attributes) == set(schema.attributes)
    for name, attribute in contract.attributes.items():
        found = onnx.AttributeProto.FromString(schema.attributes[name]._default_value)
        assert attribute.required == schema.attributes[name].required
        default = helper.get_attribute_value(found)
        assert attribute.default == (default if default is None else pytest.approx(default, rel=1e-6))


@pytest.mark.parametrize("key", OURS)
def test_no_target_but_the_three_providers_has_a_kernel(key):
    contract = CONTRACTS[key]
    assert set(contract.kernels) <= {"cpu", "cuda", "dml"}
    reason = unsupported(contract.domain, contract.op, np.dtype(np.float32), "portable")
    assert reason == f"the target 'portable' has no kernel for {key.replace('::', '.')}"


def single_node_model(node, inputs, elem_type, opset):
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, elem_type, [None] * np.ndim(value)) for name, value in inputs.items()],
        [helper.make_tensor_value_info(name, elem_type, [None] * np.ndim(inputs["x"])) for name in node.output if name],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def run(proto, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(item, np.float64) for item in session.run(None, feeds)]


def kernel_and_body(node, feeds, dtype, opset):
    elem_type = ELEMENT_TYPES[dtype][1]
    feeds = {name: np.asarray(value, helper.tensor_dtype_to_np_dtype(elem_type)) for name, value in feeds.items()}
    model = load(single_node_model(node, feeds, elem_type, opset))
    lowered = lower(model, every=True)
    onnx.checker.check_model(lowered.proto, full_check=True)
    assert [item.domain for item in lowered.proto.graph.node] == [LOWERED_DOMAIN]
    return run(model.proto, feeds), run(lowered.proto, feeds)


TOLERANCE = {"float32": 2e-6, "float16": 4e-3}


SHAPES = [((2, 3, 8), (2, 3, 8)), ((3, 4, 8), (1, 4, 8)), ((3, 4, 8), (4, 8)), ((5, 8), (5, 8)), ((1, 1, 8), (1, 8))]
OPTIONAL = list(itertools.product(["beta", ""], ["bias", ""], ["sum", ""]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("shape", "skip_shape"), SHAPES)
def test_the_skip_layer_normalization_body_computes_what_the_kernel_computes(shape, skip_shape, dtype):
    rng = np.random.default_rng(1)
    for number, (beta, bias, total) in enumerate(OPTIONAL):
        epsilon = (None, 1e-5, 0.1)[number % 3]
        attributes = {} if epsilon is None else {"epsilon": epsilon}
        inputs = ["x", "skip", "gamma", beta, bias]
        node = helper.make_node("SkipLayerNormalization", inputs, ["y", "", "", total], domain="com.microsoft", **attributes)
        feeds = {"x": rng.standard_normal(shape), "skip": rng.standard_normal(skip_shape), "gamma": rng.standard_normal(8)}
        feeds |= {name: rng.standard_normal(8) for name in (beta, bias) if name}
        expected, found = kernel_and_body(node, feeds, dtype, (17, 18, 20)[number % 3])
        assert len(found) == (2 if total else 1)
        for left, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(left, right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_the_default_epsilon_is_not_that_of_layer_normalization():
    node = helper.make_node("SkipLayerNormalization", ["x", "skip", "gamma"], ["y"], domain="com.microsoft")
    x = 1e-4 * np.random.default_rng(2).standard_normal((1, 2, 8))
    expected, found = kernel_and_body(node, {"x": x, "skip": x, "gamma": np.ones(8)}, "float32", 17)
    assert np.abs(expected[0]).max() > 1  # with 1e-5 it would stay below 0.2
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)


@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (0, 1e-3), (100, 1), (1000, 1), (10, 0.01)])
def test_the_kernel_survives_low_variance_and_large_offsets(offset, spread):
    """Against float64. The CPU kernel does not cancel catastrophically, but is up to ten times less exact than LayerNormalization
    where the offset is a hundred times the spread."""
    rng = np.random.default_rng(3)
    x = np.float32(offset + spread * rng.standard_normal((2, 5, 64)))
    skip = np.float32(spread * rng.standard_normal((2, 5, 64)))
    total = (x + skip).astype(np.float64)
    deviation = total - total.mean(-1, keepdims=True)
    exact = deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-5)
    node = helper.make_node("SkipLayerNormalization", ["x", "skip", "gamma"], ["y"], domain="com.microsoft", epsilon=1e-5)
    feeds = {"x": x, "skip": skip, "gamma": np.ones(64, np.float32)}
    found = run(single_node_model(node, feeds, TensorProto.FLOAT, 17), feeds)[0]
    assert np.abs(found - exact).max() < 3e-7 * (3 + offset / spread)
