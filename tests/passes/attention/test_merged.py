"""ai.onnx Attention between Transposes: the heads are split and merged by the op where nothing else happens to them."""

import numpy as np
import onnx
import pytest
from pass_harness import as_model, parity, run, run_pass

from rewright.passes.fusion.multi_head_attention import MultiHeadAttention

TEXT = """<ir_version: 10, opset_import: ["": 23]>
g (float[B, S, 24] x, float[B, T, 12] memory, float[B, 1, S, T] mask) => (float[B, S, 20] y{extra_type}) <
  int64[4] split = {{0, 0, {heads}}}, int64[4] split_k = {{0, 0, 2, 6}}, int64[3] merged = {{0, 0, 20}}
> {{
  q3 = MatMul (x, wq)
  q4 = Reshape (q3, split)
  q = Transpose <perm = [{query_perm}]> (q4)
  k4 = Reshape (memory, split_k)
  k = Transpose <perm = [0, 2, 1, 3]> (k4)
  v3 = MatMul (memory, wv)
  v4 = Reshape (v3, split_v)
  v = Transpose <perm = [0, 2, 1, 3]> (v4)
  o = Attention <scale: float = 0.3> (q, k, v, mask)
  o4 = Transpose <perm = [{result_perm}]> (o)
  y = Reshape (o4, merged)
  {extra}
}}"""


def model(heads="4, 6", query_perm="0, 2, 1, 3", result_perm="0, 2, 1, 3", extra="", extra_type=""):
    made = onnx.parser.parse_model(
        TEXT.format(heads=heads, query_perm=query_perm, result_perm=result_perm, extra=extra, extra_type=extra_type)
    )
    rng = np.random.default_rng(0)
    for name, values in (
        ("wq", rng.normal(size=(24, 24)).astype(np.float32)),
        ("wv", rng.normal(size=(12, 10)).astype(np.float32)),
        ("split_v", np.array([0, 0, 2, 5])),
    ):
        made.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return made


def feeds(batch, rows, columns):
    rng = np.random.default_rng(1)
    shapes = {"x": (batch, rows, 24), "memory": (batch, columns, 12), "mask": (batch, 1, rows, columns)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_heads_are_split_and_merged_by_the_op():
    before = model()
    session, after = run_pass(MultiHeadAttention(), before)
    assert len(session.sites) == 1
    assert set(after.op_counts()) == {"ai.onnx::MatMul", "ai.onnx::Attention"}
    node = next(node for node in after.proto.graph.node if node.op_type == "Attention")
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    assert attributes == {"scale": pytest.approx(0.3), "q_num_heads": 4, "kv_num_heads": 2}
    for batch, rows, columns in ((1, 1, 1), (2, 3, 5), (3, 4, 4)):
        parity(before, after, feeds(batch, rows, columns), rtol=1e-5, atol=2e-6)
    again, same = run_pass(MultiHeadAttention(), after)
    assert again.sites == []
    assert same.fingerprint() == after.fingerprint()


def test_a_mask_that_the_kernel_would_not_repeat_is_repeated_as_well():
    before = model()
    before.graph.input[2].type.tensor_type.shape.dim[2].dim_value = 1
    session, after = run_pass(MultiHeadAttention(), before)
    assert len(session.sites) == 2
    assert "ai.onnx::Transpose" not in after.op_counts()
    given = {**feeds(2, 3, 5), "mask": feeds(2, 1, 5)["mask"]}
    wide = {**given, "mask": np.repeat(given["mask"], 3, axis=2)}
    found = run(after, given)
    np.testing.assert_allclose(found[0], run(as_model(model()), wide)[0], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": "z = Identity (o4)", "extra_type": ", float[B, S, 4, 5] z"},
        {"extra": "z = Identity (o)", "extra_type": ", float[B, 4, S, 5] z"},
        {"heads": "6, 4", "query_perm": "0, 3, 1, 2"},
        {"result_perm": "0, 2, 3, 1"},
    ],
    ids=["merged-elsewhere", "heads-elsewhere", "size-for-heads", "mixed-result"],
)
def test_what_is_used_or_laid_out_otherwise_stays(changes):
    before = model(**changes)
    session, after = run_pass(MultiHeadAttention(), before)
    assert session.sites == []
    parity(before, after, feeds(2, 3, 5), rtol=0, atol=0)
