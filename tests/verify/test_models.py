"""Comparing any two models: which input and output of one is which of the other, and what counts as the same interface."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

from rewright.model.errors import UsageError
from rewright.verify.interface import check_interface
from rewright.verify.mapping import Correspondence, under_reference_names
from rewright.verify.models import verify

REFERENCE = "g (float[N, 4] a, float[N, 4] b) => (float[N, 4] sum, float[N, 4] product) { sum = Sub(a, b)  product = Mul(a, b) }"
RENAMED = "g (float[N, 4] u, float[N, 4] v) => (float[N, 4] p, float[N, 4] s) { p = Mul(u, v)  s = Sub(u, v) }"
REORDERED = "g (float[N, 4] b, float[N, 4] a) => (float[N, 4] product, float[N, 4] sum) { product = Mul(a, b)  sum = Sub(a, b) }"
SWAPPED = "g (float[N, 4] b, float[N, 4] a) => (float[N, 4] product, float[N, 4] sum) { sum = Mul(a, b)  product = Sub(b, a) }"
NAMES = {"a": "u", "b": "v", "sum": "s", "product": "p"}


def test_renamed_and_reordered_inputs_and_outputs_are_equal_under_a_mapping(parse):
    assert not verify(parse(REFERENCE), parse(RENAMED), divergence=False).equal
    comparison = verify(parse(REFERENCE), parse(RENAMED), mapping=NAMES)
    assert comparison.equal
    assert [output.name for output in comparison.parity.outputs] == ["sum", "product"]
    assert comparison.divergence is None


def test_a_mapping_in_two_parts_and_as_a_file(parse, tmp_path):
    parts = {"inputs": {"a": "u", "b": "v"}, "outputs": {"sum": "s", "product": "p"}}
    assert verify(parse(REFERENCE), parse(RENAMED), mapping=parts).equal
    (tmp_path / "names.json").write_text(json.dumps(parts))
    (tmp_path / "names.yaml").write_text("a: u\nb: v\nsum: s\nproduct: p\n")
    assert verify(parse(REFERENCE), parse(RENAMED), mapping=tmp_path / "names.json").equal
    assert verify(parse(REFERENCE), parse(RENAMED), mapping=str(tmp_path / "names.yaml")).equal


def test_numbers_are_names(parse, tmp_path):
    numbered = parse(RENAMED)
    numbered.proto.graph.output[1].name = numbered.proto.graph.node[1].output[0] = "2044"
    (tmp_path / "names.yaml").write_text("inputs: {a: u, b: v}\noutputs: {sum: 2044, product: p}\n")
    assert verify(parse(REFERENCE), numbered, mapping=tmp_path / "names.yaml").equal


def test_the_inputs_go_where_the_mapping_says(parse):
    """a - b is not b - a."""
    crossed = {"a": "v", "b": "u", "sum": "s", "product": "p"}
    comparison = verify(parse(REFERENCE), parse(RENAMED), mapping=crossed)
    assert [output.equal for output in comparison.parity.outputs] == [False, True]


def test_another_order_is_a_difference_until_a_mapping_says_that_names_decide(parse):
    comparison = verify(parse(REFERENCE), parse(REORDERED))
    assert comparison.interface.problems[0] == "inputs are reordered: ['b', 'a'] instead of ['a', 'b']"
    assert verify(parse(REFERENCE), parse(REORDERED), mapping={"a": "a"}).equal


def test_names_that_are_exchanged(parse):
    """The candidate's b is a, its product is the sum, and it has them in the other order."""
    outputs = {"sum": "product", "product": "sum"}
    assert verify(parse(REFERENCE), parse(SWAPPED), mapping={"a": "b", "b": "a", **outputs}).equal
    assert not verify(parse(REFERENCE), parse(SWAPPED), mapping=outputs, divergence=False).equal


def test_inputs_and_outputs_by_position(parse):
    in_order = "g (float[M, 4] u, float[M, 4] v) => (float[M, 4] s, float[M, 4] p) { p = Mul(u, v)  s = Sub(u, v) }"
    assert verify(parse(REFERENCE), parse(in_order), by_position=True).equal
    assert not verify(parse(REFERENCE), parse(RENAMED), by_position=True, divergence=False).equal


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ("g (float[N, 4] a) => (float[N, 4] s, float[N, 4] p) { s = Relu(a)  p = Neg(a) }", "2 inputs and the candidate 1"),
        (
            "g (float[N, 4] a, float[N] b) => (float[N, 4] s, float[N, 4] p) { s = Relu(a)  p = Neg(a) }",
            r"input 1 is 'b', float\[N, 4\], in the reference and 'b', float\[N\], in the candidate",
        ),
        (
            "g (float[N, 4] a, float[N, 4] b) => (float[N, 4] s, int64[N, 4] p) { s = Relu(a)  p = Cast<to = 7>(b) }",
            r"output 1 is 'product', float\[N, 4\], in the reference and 'p', int64\[N, 4\], in the candidate",
        ),
    ],
)
def test_positions_that_do_not_fit(parse, candidate, message):
    with pytest.raises(UsageError, match=message):
        verify(parse(REFERENCE), parse(candidate), by_position=True)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"c": "u"}, "the reference has no input or output 'c'"),
        ({"a": "w"}, "the candidate has no input 'w'"),
        ({"sum": "u"}, "the candidate has no output 'u'"),
        ({"a": "u", "b": "u"}, "'u' is mapped to 'a' and to 'b'"),
        ({"inputs": {"sum": "s"}}, "the reference has no input 'sum'"),
        ({"inputs": {"a": 3}}, "holds 3, which is no name"),
        ("nowhere.yaml", "the mapping 'nowhere.yaml' cannot be read"),
    ],
)
def test_mappings_that_do_not_fit(parse, mapping, message):
    with pytest.raises(UsageError, match=message) as error:
        verify(parse(REFERENCE), parse(RENAMED), mapping=mapping)
    assert error.value.hint


def test_a_name_near_the_one_that_is_meant(parse):
    with pytest.raises(UsageError) as error:
        verify(parse(REFERENCE), parse(RENAMED), mapping={"prodct": "p"})
    assert "'product'" in error.value.hint


def test_a_name_of_the_candidates_own_that_another_is_mapped_to(parse):
    with pytest.raises(UsageError, match="the candidate has an input 'a' of its own"):
        verify(parse(REFERENCE), parse(REORDERED), mapping={"a": "b"})


@pytest.mark.parametrize("text", ["[a, b]", "{a: [u", "just words"])
def test_files_that_hold_no_mapping(parse, tmp_path, text):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"names\.yaml"):
        verify(parse(REFERENCE), parse(RENAMED), mapping=tmp_path / "names.yaml")


def test_a_mapping_and_an_order_at_once(parse):
    with pytest.raises(UsageError, match="two answers"):
        verify(parse(REFERENCE), parse(RENAMED), mapping=NAMES, by_position=True)


def renamed(reference, candidate, **names) -> onnx.ModelProto:
    return under_reference_names(reference, candidate, Correspondence(**names)).proto


def test_an_inner_value_of_a_new_name_steps_aside(parse):
    reference = parse("g (float[4] x) => (float[4] h) { h = Relu(x) }")
    candidate = parse("g (float[4] x) => (float[4] y) { h = Neg(x)  n = Neg(h)  y = Relu(n) }")
    proto = renamed(reference, candidate, outputs={"h": "y"})
    onnx.checker.check_model(proto)
    assert [list(node.output) for node in proto.graph.node][-1] == ["h"]
    assert verify(reference, candidate, mapping={"h": "y"}).equal


def test_bodies_follow_what_they_capture(parse):
    text = """g (float[4] {x}, bool {c}) => (float[4] {y}) {{
        {y} = If ({c}) <
            then_branch = t () => (float[4] t1) {{ t1 = Neg({x}) }},
            else_branch = e () => (float[4] e1) {{ e1 = Relu({x}) }}>
    }}"""
    reference, candidate = parse(text.format(x="x", c="c", y="y")), parse(text.format(x="data", c="flag", y="out"))
    inputs = [{"x": np.array([-1, 2, -3, 4], np.float32), "c": np.array(flag)} for flag in (True, False)]
    assert verify(reference, candidate, mapping={"x": "data", "c": "flag", "y": "out"}, inputs=inputs).equal


def test_an_input_that_is_an_output_too(parse):
    reference = parse("g (float[N] x) => (float[N] y, float[N] z) { y = Neg(x)  z = Identity(x) }")
    candidate = parse("g (float[N] data) => (float[N] n, float[N] data) { n = Neg(data) }")
    comparison = verify(reference, candidate, mapping={"inputs": {"x": "data"}, "outputs": {"y": "n", "z": "data"}})
    assert comparison.equal
    assert [output.name for output in comparison.parity.outputs] == ["y", "z"]


def test_an_input_with_a_default_keeps_it(parse):
    reference = parse("g (float[N] x, float[1] s) => (float[N] y) <float[1] s = {2}> { y = Mul(x, s) }")
    candidate = parse("g (float[N] x, float[1] scale) => (float[N] y) <float[1] scale = {2}> { y = Mul(scale, x) }")
    assert verify(reference, candidate, mapping={"s": "scale"}).equal


TYPED = "g (float[{}, 4] x, float[{}] w) => (float[{}, {}] y) {{ y = Relu(x) }}"


@pytest.mark.parametrize(
    ("dims", "problem", "note"),
    [
        (("batch", "other", "batch", "4"), "", "dimension 'M' is called 'other'"),
        (("N", "M", "Relu_dim_0", "Relu_dim_1"), "", "output 'y' is declared as float[Relu_dim_0, Relu_dim_1]"),
        (("N", "M", "N", "5"), "output 'y' is float[N, 5] instead of float[N, 4]", ""),
        (("N", "M", "3", "4"), "output 'y' is float[3, 4] instead of float[N, 4]", ""),
        (("batch", "batch", "batch", "4"), "input 'w' is float[batch] instead of float[M]", ""),
        (("batch", "other", "other", "4"), "output 'y' is float[other, 4] instead of float[N, 4]", ""),
        (("2", "M", "2", "4"), "input 'x' is float[2, 4] instead of float[N, 4]", ""),
    ],
)
def test_dimensions_may_have_other_names_but_no_other_meaning(parse, dims, problem, note):
    before, after = parse(TYPED.format("N", "M", "N", "4")), parse(TYPED.format(*dims))
    evidence = check_interface(before, after, may_rename_symbols=True)
    assert evidence.reason == problem
    assert note in "; ".join(evidence.notes)
    assert check_interface(before, after).status == "failed"


def test_an_output_whose_shape_is_not_stated(parse):
    full, bare = parse("g (float[N] x) => (float[N] y) { y = Relu(x) }"), parse("g (float[N] x) => (float[] y) { y = Relu(x) }")
    bare.proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert check_interface(full, bare, may_rename_symbols=True).status == "passed"
    assert check_interface(full, bare).status == "failed"
