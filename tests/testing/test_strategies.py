"""The strategies give models that are what they say: valid, runnable for every size, and made of what was asked for."""

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import rewright
from rewright.model.carrier import all_graphs, all_nodes
from rewright.model.load import load
from rewright.testing.strategies import OPSETS, PARTS, ROOMS, cases, models
from rewright.verify.inputs import make_input_sets
from rewright.verify.process import SessionWorker

SOME = settings(max_examples=30, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
FEW = settings(SOME, max_examples=4)


@pytest.fixture(scope="module")
def worker():
    with SessionWorker() as running:
        yield running


def sizes_of(value, array):
    """The sizes of a declaration's symbols in an array of it."""
    return {dim.dim_param: size for dim, size in zip(dims_of(value), array.shape, strict=True) if dim.dim_param}


def dims_of(value):
    return value.type.tensor_type.shape.dim


def assert_runs(model, feeds, worker):
    """ONNX Runtime loads and runs it, and every output is of the type and of the sizes that are declared."""
    (result,) = worker.run(load(model), [feeds]).results
    assert not result.error, result.error
    symbols = {}
    for value in model.graph.input:
        if value.name in feeds:
            symbols |= sizes_of(value, feeds[value.name])
    for value in model.graph.output:
        array = result.outputs[value.name]
        assert array.dtype == helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        declared = [dim.dim_value if dim.HasField("dim_value") else symbols.get(dim.dim_param) for dim in dims_of(value)]
        assert len(declared) == array.ndim
        assert all(size in (None, found) for size, found in zip(declared, array.shape, strict=True)), value.name
        if array.dtype.kind == "f":
            assert np.isfinite(array).all(), value.name


@SOME
@given(cases(models()))
def test_models_are_valid_and_run_on_their_inputs(worker, case):
    model, feeds = case
    onnx.checker.check_model(model)
    assert_runs(model, feeds, worker)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_at_every_size(worker, part):
    @FEW
    @given(models(parts=[part], max_parts=2))
    def check(model):
        onnx.checker.check_model(model)
        for made in make_input_sets(load(model)):
            assert_runs(model, made.arrays, worker)

    check()


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_runs(worker, opset):
    @FEW
    @given(cases(models(opsets=[opset], parts=["normalizations", "products", "activations", "shapes"])))
    def check(case):
        model, feeds = case
        assert next(entry.version for entry in model.opset_import if not entry.domain) == opset
        assert_runs(model, feeds, worker)

    check()


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_the_float_type_is_the_one_asked_for(dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    @SOME
    @given(models(dtypes=[dtype]))
    def check(model):
        assert {value.type.tensor_type.elem_type for value in model.graph.input if value.name in "xz"} == {kind}

    check()


def generated(count, **options):
    found = []

    @settings(SOME, max_examples=count)
    @given(models(**options))
    def collect(model):
        found.append(model)

    collect()
    return found


def features(model):
    """What a model has of what is rare in handwritten ones."""
    graph, nodes = model.graph, list(all_nodes(model))
    inputs, constants = ({item.name for item in items} for items in (graph.input, graph.initializer))
    readers = Counter(name for node in nodes for name in node.input)
    read = set(readers) | {value.name for body in all_graphs(model) for value in body.output}
    inner = {name for body in all_graphs(model) if body is not graph for node in body.node for name in node.input}
    yield from (node.op_type for node in nodes)
    yield f"opset {model.opset_import[0].version}"
    yield from (f"input {dim.dim_param}" for value in graph.input for dim in dims_of(value) if dim.dim_param)
    flags = {
        "function": bool(model.functions),
        "optional input": any("" in node.input for node in nodes),
        "overridable": bool(inputs & constants),
        "float16 constant": any(tensor.data_type == TensorProto.FLOAT16 for tensor in graph.initializer),
        "shared constant": any(readers[name] > 1 for name in constants),
        "capture": bool(inner & {name for node in graph.node for name in node.output}),
        "several outputs": len(graph.output) > 2,
        "unused": any(not read.intersection(node.output) for node in graph.node),
        "value info": bool(graph.value_info),
        "no node names": any(not node.name for node in nodes),
        "fixed": any(dim.dim_value and axis < 2 for axis, dim in enumerate(dims_of(graph.input[0]))),
    }
    yield from (name for name, is_there in flags.items() if is_there)


def test_much_of_what_onnx_allows_occurs():
    seen = Counter(name for model in generated(250) for name in set(features(model)))
    wanted = ["If", "Loop", "function", "optional input", "overridable", "float16 constant", "shared constant", "capture"]
    wanted += ["several outputs", "unused", "value info", "no node names", "fixed", "input batch", "input sequence"]
    wanted += ["LayerNormalization", "Softmax", "Range", "Expand", "Slice", "Gather", "Gemm", "Split", "Where", "Conv"]
    assert [name for name in wanted if not seen[name]] == []
    assert [opset for opset in OPSETS if not seen[f"opset {opset}"]] == []


FIRES = {
    "layer-norm": ["layer-norm"],
    "rms-norm": ["rms-norm"],
    "residual-norm": ["skip-layer-norm"],
    "gelu": ["gelu", "bias-gelu"],
    "fast-gelu": ["fast-gelu"],
    "sigmoid-gelu": ["quick-gelu"],
    "attention": ["attention", "multi-head-attention"],
    "rotary": ["rotary-embedding"],
    "function": ["inline-functions"],
    "if": ["inline-conditionals"],
    "nothing": ["identity-elimination"],
    "shapes": ["shape-simplification"],
}


@pytest.mark.parametrize("part", FIRES)
def test_parts_are_right_often_enough_for_passes_to_fire_and_wrong_often_enough_for_them_to_refuse(part):
    fired, refused, models_made = Counter(), 0, generated(25, parts=[part], dtypes=["float32"], max_parts=2)
    for model in models_made:
        report = rewright.optimize(model, verify="off").report
        fired.update(report.counts())
        refused += any(record.rejections for record in report.passes)
    assert [name for name in FIRES[part] if not fired[name]] == []
    if part in ("layer-norm", "gelu", "attention"):
        assert refused


def test_an_example_shrinks_to_what_matters():
    def has_erf(model):
        return any(node.op_type == "Erf" for node in model.graph.node)

    mixed = models(parts=["transposes", "linear", "gelu", "softmax"])
    smallest = find(mixed, has_erf, settings=settings(max_examples=200, suppress_health_check=list(HealthCheck)))
    assert [node.op_type for node in smallest.graph.node] == ["Div", "Erf", "Add", "Mul", "Mul"]
    assert {value.name: value.type.tensor_type.elem_type for value in smallest.graph.input} == {"x": 1, "z": 1}
    assert len(smallest.graph.output) == 1
    assert smallest.opset_import[0].version == min(OPSETS)


def test_the_options_steer_size():
    assert all(len(model.graph.output) == 1 for model in generated(20, more_outputs=0))
    small = [len(model.graph.node) for model in generated(20, parts=["unary"], max_parts=1)]
    large = [len(model.graph.node) for model in generated(20, parts=["unary"], min_parts=12, max_parts=12)]
    assert max(small) <= 3
    assert min(large) >= 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["unary", "teleport"]}, "there is no part 'teleport'"),
        ({"parts": []}, "there is no part at all"),
        ({"opsets": [12, 17]}, r"no models of opset \[12\]"),
        ({"min_parts": 5, "max_parts": 2}, "there are no models of 5 to 2 parts"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(rewright.UsageError, match=message):
        models(**options)


@SOME
@given(st.data())
def test_groups_are_made_of_their_parts(data):
    room = data.draw(st.sampled_from(sorted(ROOMS)))
    model = data.draw(models(parts=[room], max_parts=1))
    assert model.graph.node
