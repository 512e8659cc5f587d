"""What becomes of types around float16: interfaces, casts, bodies, fixed operands, random numbers, shared constants."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from precision_harness import FLOAT, HALF, check, converted, done, kept, ops, parsed, types_made

import rewright
from rewright.model.carrier import all_graphs
from rewright.model.errors import SelectionError

EYE = "{1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,1}"
PLAIN = f"""g (float[N, 4] x) => (float[N, 4] y, float[N, 4] h) <float[4, 4] w = {EYE}> {{
    [first] h = MatMul(x, w)
    [act] r = Relu(h)
    [second] y = MatMul(r, w)
}}"""


def elem_types(values: object) -> list[int]:
    return [value.type.tensor_type.elem_type for value in values]  # type: ignore[attr-defined]


def test_inputs_and_outputs_stay_by_default_and_inner_readers_read_what_was_computed() -> None:
    result = converted(parsed(PLAIN))
    graph = result.model.proto.graph
    assert elem_types(graph.input) == [FLOAT]
    assert elem_types(graph.output) == [FLOAT, FLOAT]
    assert [value.name for value in graph.output] == ["y", "h"]
    assert ops(result.model).count("Cast") == 3
    (relu,) = [node for node in graph.node if node.name == "act"]
    (first,) = [node for node in graph.node if node.name == "first"]
    assert relu.input[0] == first.output[0] != "h"


def test_the_interface_is_converted_if_that_is_asked_for() -> None:
    result = converted(parsed(PLAIN), "float16{keep_io=false}")
    assert result.report.verdict == "passed", result.report.reason
    graph = result.model.proto.graph
    assert elem_types(graph.input) == [HALF]
    assert elem_types(graph.output) == [HALF, HALF]
    assert ops(result.model) == ["MatMul", "Relu", "MatMul"]


def test_running_twice_changes_nothing() -> None:
    first = converted(parsed(PLAIN))
    second = converted(first.model)
    assert second.report.passes[-1].status == "unchanged"
    assert second.model.fingerprint() == first.model.fingerprint()


def test_casts_to_float32_become_casts_to_float16_and_one_that_rounds_stays() -> None:
    body = f"""g (int64[N, 4] ids, double[N, 4] d) => (float[N, 4] y) <float[4, 4] w = {EYE}> {{
        [up] a = Cast<to = 1>(ids)
        [down] b = Cast<to = 1>(d)
        [sum] c = Add(a, b)
        [half] e = Cast<to = 10>(c)
        [again] f = Cast<to = 1>(e)
        [product] y = MatMul(f, w)
    }}"""
    inputs = [{"ids": np.arange(8).reshape(2, 4), "d": np.full((2, 4), 0.5)}]
    result = converted(parsed(body), inputs=inputs)
    made = types_made(result.model)
    assert {made[name] for name in ("up", "down", "sum", "product")} == {HALF}
    assert not {"half", "again"} & set(made), "both have nothing left to do"
    assert ops(result.model) == ["Cast", "Cast", "Add", "MatMul", "Cast"]


def test_operands_of_a_fixed_type_stay_and_sizes_do_not_matter() -> None:
    body = """g (float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) <float[1, 1, 3, 3] k = {1,2,1,2,4,2,1,2,1},
        float[4] scales = {1,1,2,2}, float[8] roi = {0,0,0,0,1,1,1,1}> {
        [conv] c = Conv<pads = [1,1,1,1]>(x, k)
        [resize] r = Resize<mode = "linear">(c, roi, scales)
        [size] s = Shape(r)
        [shaped] t = Reshape(r, s)
        [last] y = Conv<pads = [1,1,1,1]>(t, k)
    }"""
    result = converted(parsed(body))
    assert result.report.verdict == "passed"
    assert done(result) == {"conv", "resize", "shaped", "last"}
    held = {tensor.name: tensor.data_type for tensor in result.model.proto.graph.initializer}
    assert (held["k"], held["scales"], held["roi"]) == (HALF, FLOAT, FLOAT)


def test_random_numbers_are_drawn_in_float32_as_before() -> None:
    body = f"""g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {EYE}> {{
        [first] a = MatMul(x, w)
        [noise] n = RandomNormalLike<seed = 1.0, scale = 0.001>(x)
        [sum] s = Add(a, n)
        [second] y = MatMul(s, w)
    }}"""
    result = converted(parsed(body))
    made = types_made(result.model)
    assert (made["noise"], made["sum"]) == (FLOAT, HALF)


def test_a_constant_that_both_types_read_is_there_twice_and_else_once() -> None:
    body = f"""g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {EYE}> {{
        [first] a = MatMul(x, w)
        [noise] n = RandomNormalLike<seed = 1.0, scale = 0.001>(w)
        [second] b = MatMul(a, n)
        [filled] c = Constant<value = float[4] {{1,2,3,4}}>()
        [scaled] y = Mul(b, c)
    }}"""
    result = converted(parsed(body))
    graph = result.model.proto.graph
    held = sorted((tensor.data_type, tensor.name) for tensor in graph.initializer)
    assert [kind for kind, _ in held] == [FLOAT, HALF]
    (constant,) = [node for node in graph.node if node.op_type == "Constant"]
    assert constant.attribute[0].t.data_type == HALF


BRANCHES = f"""g (float[N, 4] x, bool c) => (float[N, 4] y) <float[4, 4] w = {EYE}, float[4] b = {{1,2,3,4}}> {{
    [before] h = MatMul(x, w)
    [choice] z = If(c) <then_branch = t () => (float[N, 4] p) {{ [inner] i = MatMul(h, w) [biased] p = Add(i, b) }},
        else_branch = e () => (float[N, 4] q) {{ [other] q = Mul(h, h) }}>
    [after] y = MatMul(z, w)
}}"""


def test_branches_are_converted_inside_and_read_what_is_outside() -> None:
    rng = np.random.default_rng(0)
    inputs = [{"x": rng.standard_normal((2, 4)).astype(np.float32), "c": np.array(flag)} for flag in (True, False)]
    result = converted(parsed(BRANCHES), inputs=inputs)
    assert result.report.verdict == "passed"
    assert {"before", "after", "inner", "biased"} <= done(result)
    bodies = list(all_graphs(result.model.proto))[1:]
    assert {value.type.tensor_type.elem_type for body in bodies for value in body.output} == {FLOAT}
    (tensor,) = [tensor for tensor in result.model.proto.graph.initializer if tensor.name == "w"]
    assert tensor.data_type == HALF, "the graph and its bodies share it still"


def test_what_a_loop_carries_stays_float32_and_its_body_computes_in_float16_where_that_is_known_to_fit() -> None:
    body = f"""g (float[2, 4] x, int64 n) => (float[2, 4] y) <float[4, 4] w = {EYE}, bool go = {{1}}> {{
        [before] h = MatMul(x, w)
        [loop] l = Loop(n, go, h) <body = b (int64 i, bool k, float[2, 4] s) => (bool k2, float[2, 4] s2) {{
            [bounded] t = Tanh(s)
            [inner] u = MatMul(t, w)
            [shrunk] s2 = Tanh(u)
            [same] k2 = Identity(k) }}>
        [after] y = MatMul(l, w)
    }}"""
    rng = np.random.default_rng(0)
    inputs = [{"x": rng.standard_normal((2, 4)).astype(np.float32), "n": np.array(rounds)} for rounds in (0, 3)]
    result = converted(parsed(body), inputs=inputs)
    assert result.report.verdict == "passed"
    assert {"before", "after", "inner"} <= done(result)
    inner = list(all_graphs(result.model.proto))[1]
    assert elem_types(inner.input)[2] == elem_types(inner.output)[1] == FLOAT


def test_nodes_in_functions_are_left_and_the_reason_says_what_to_do() -> None:
    proto = parsed(f"g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {EYE}> {{ [call] h = own.Act(x) y = MatMul(h, w) }}",
                   domains=', "own" : 1')  # fmt: skip
    act = helper.make_function("own", "Act", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"], name="relu")],
                               [helper.make_opsetid("", 17)])  # fmt: skip
    proto.functions.append(act)
    result = converted(proto)
    assert all(entry.outcome != "quantized" for entry in result.report.passes[-1].coverage if entry.node in ("relu", "call"))
    assert "inline-functions" in str(kept(result).get("relu", "inline-functions"))
    inlined = converted(proto, "inline-functions, float16")
    assert ops(inlined.model) == ["Cast", "Relu", "MatMul", "Cast"]


def test_a_model_in_which_all_nodes_are_left_out_is_unchanged() -> None:
    model = parsed(PLAIN)
    result = converted(model, 'float16{exclude=["*"]}')
    assert result.report.passes[-1].status == "unchanged"
    assert result.model.proto == model
    assert {entry.outcome for entry in result.report.passes[-1].coverage} == {"excluded"}


def test_nodes_and_ops_can_be_chosen_and_a_name_that_fits_nothing_is_an_error() -> None:
    assert done(converted(parsed(PLAIN), 'float16{nodes=["first"]}')) == {"first"}
    assert done(converted(parsed(PLAIN), "float16{operators=[MatMul]}")) == {"first", "second"}
    assert "act" not in done(converted(parsed(PLAIN), 'float16{exclude=["act"]}'))
    with pytest.raises(SelectionError, match="'frist' in exclude fits no node") as caught:
        rewright.Chain('float16{exclude=["frist"]}').run(parsed(PLAIN))
    assert "first" in caught.value.hint


def test_a_weight_of_many_megabytes_is_stored_in_half() -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((1024, 1024)) / 32).astype(np.float32)
    proto = parsed("g (float[N, 1024] x) => (float[N, 1024] y) { [product] y = MatMul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    result = converted(proto)
    summary = result.report.quantization
    assert summary is not None
    assert (summary.bytes_before, summary.bytes_after) == (weight.nbytes, weight.nbytes // 2)
    (entry,) = [entry for entry in result.report.passes[-1].coverage if entry.node == "product"]
    assert entry.error == pytest.approx(2e-4, rel=0.5)
    (tensor,) = result.model.proto.graph.initializer
    assert tensor.data_type == TensorProto.FLOAT16
    np.testing.assert_array_equal(result.model.tensor(tensor), weight.astype(np.float16))
    check(result.model)


@pytest.mark.parametrize(
    ("perm", "shape", "stays"), [("1,0,2", "4,4,4", True), ("1,2,3,0", "4,4,4,4", True), ("0,2,1", "4,4,4", False)]
)
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_a_transpose_that_onnx_runtime_dies_of_on_a_cpu_stays(perm: str, shape: str, stays: bool, target: str) -> None:
    """The fusion that moves casts would leave unresolved nodes behind. That it loads is checked in passing."""
    body = f"""g (float[{shape}] x) => (float[{shape}] y) <float[4, 4] w = {EYE}> {{
        [before] a = MatMul(x, w)
        [turned] t = Transpose<perm = [{perm}]>(a)
        [behind] y = MatMul(t, w)
    }}"""
    result = converted(parsed(body), target=target)
    assert result.report.verdict == "passed"
    assert done(result) == {"before", "behind"} | (set() if stays else {"turned"})
    assert ("dies of a cast" in kept(result).get("turned", "")) == stays
