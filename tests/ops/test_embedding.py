"""The contract of EmbedLayerNormalization: its body against ONNX Runtime's CPU kernel, over all optional inputs and outputs."""

import itertools

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from rewright.model.load import load
from rewright.ops.lowering import LOWERED_DOMAIN, lower
from rewright.ops.targets import unsupported

B, S, H = 3, 5, 8
RNG = np.random.default_rng(0)
WORDS, POSITIONS, SEGMENTS = (RNG.standard_normal((rows, H)).astype(np.float32) for rows in (20, 7, 2))
GAMMA, BETA = RNG.standard_normal((2, H)).astype(np.float32)
IDS = RNG.integers(0, 20, (B, S), dtype=np.int32)
GIVEN = {
    "input_ids": IDS,
    "segment_ids": RNG.integers(0, 2, (B, S), dtype=np.int32),
    "word_embedding": WORDS,
    "position_embedding": POSITIONS,
    "segment_embedding": SEGMENTS,
    "gamma": GAMMA,
    "beta": BETA,
    "mask": np.asarray([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 2, 1, 0]], np.int32),
    "position_ids": RNG.integers(0, 7, (B, S), dtype=np.int32),
}
REQUIRED = {"input_ids", "word_embedding", "position_embedding", "gamma", "beta"}


def model_of(feeds, outputs=("output", "mask_index", "embedding_sum"), opset=17, **attributes):
    inputs = [name if name in feeds else "" for name in GIVEN]
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node("EmbedLayerNormalization", inputs, outputs, domain="com.microsoft", **attributes)

    def typed(name, value):
        sizes = value.shape if value.dtype != np.int32 else [None] * value.ndim
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), sizes)

    kinds = {"output": (TensorProto.FLOAT, 3), "mask_index": (TensorProto.INT32, 1), "embedding_sum": (TensorProto.FLOAT, 3)}
    results = [helper.make_tensor_value_info(name, kinds[name][0], [None] * kinds[name][1]) for name in outputs if name]
    graph = helper.make_graph([node], "one", [typed(*item) for item in feeds.items()], results)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return load(helper.make_model(graph, opset_imports=imports, ir_version=8))


def run(model, feeds):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def assert_body_is_the_kernel(model, feeds):
    lowered = lower(model, every=True)
    assert [node.domain for node in lowered.proto.graph.node] == [LOWERED_DOMAIN]
    expected, found = run(model, feeds), run(lowered, feeds)
    assert len(found) == len(expected)
    for left, right in zip(found, expected, strict=True):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, rtol=2e-5, atol=2e-5)
    return expected


@pytest.mark.parametrize("opset", [11, 17, 20])
def test_the_body_is_what_the_kernel_computes(opset):
    optional = [name for name in GIVEN if name not in REQUIRED]
    for count, kept in itertools.product(range(len(optional) + 1), [False, True]):
        for chosen in itertools.combinations(optional, count):
            if "segment_ids" in chosen and "segment_embedding" not in chosen:
                continue
            feeds = {name: value for name, value in GIVEN.items() if name in REQUIRED or name in chosen}
            outputs = ("output", "mask_index", "embedding_sum") if kept else ("output", "")
            assert_body_is_the_kernel(model_of(feeds, outputs, opset), feeds)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.5])
def test_epsilon_and_its_default(epsilon):
    feeds = {name: GIVEN[name] for name in GIVEN if name in REQUIRED}
    feeds |= {name: 1e-4 * feeds[name] for name in ("word_embedding", "position_embedding")}
    stated = assert_body_is_the_kernel(model_of(feeds, epsilon=epsilon), feeds)
    default = assert_body_is_the_kernel(model_of(feeds), feeds)
    assert np.allclose(stated[0], default[0], rtol=1e-3) == (epsilon == 1e-12)


def test_the_mask_index_counts_ones():
    _, counted, _ = run(model_of(GIVEN), GIVEN)
    assert counted.tolist() == [5, 2, 2]
    feeds = {name: value for name, value in GIVEN.items() if name != "mask"}
    assert run(model_of(feeds), feeds)[1].tolist() == [0, 0, 0]


def test_position_ids_of_one_row_are_for_every_row():
    feeds = GIVEN | {"position_ids": GIVEN["position_ids"][:1]}
    output, _, total = assert_body_is_the_kernel(model_of(feeds), feeds)
    assert output.shape == total.shape == (B, S, H)


def test_a_segment_table_without_ids_adds_its_first_row():
    feeds = {name: value for name, value in GIVEN.items() if name in (*REQUIRED, "segment_embedding")}
    total = assert_body_is_the_kernel(model_of(feeds), feeds)[2]
    np.testing.assert_allclose(total, WORDS[IDS] + POSITIONS[:S] + SEGMENTS[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"input_ids": -IDS}, "input index out of range"),
        ({"position_embedding": POSITIONS[:4]}, "input index out of range"),
        ({"segment_ids": GIVEN["segment_ids"][:1], "segment_embedding": SEGMENTS}, "shall have same shape"),
        ({"position_ids": GIVEN["position_ids"][:2]}, "first dimension shall be 1 or batch_size"),
    ],
)
def test_the_kernel_fails_on_what_the_pass_must_not_give_it(changed, problem):
    feeds = {name: GIVEN[name] for name in REQUIRED} | changed
    feeds = {name: feeds[name] for name in GIVEN if name in feeds}
    with pytest.raises(Exception, match=problem):
        run(model_of(feeds), feeds)


def test_the_kernel_is_chosen_by_the_table_not_by_the_ids():
    def why_not(dtype, target="cpu"):
        return unsupported("com.microsoft", "EmbedLayerNormalization", np.dtype(dtype), target)

    assert why_not("float32") is None
    assert "no kernel for com.microsoft.EmbedLayerNormalization on float16" in why_not("float16")
    assert why_not("float16", "cuda") is None
    assert "no kernel" in why_not("float32", "portable")
    halves = {name: np.float16(value) if value.dtype == np.float32 else value for name, value in GIVEN.items()}
    lowered = lower(model_of(halves))
    assert [node.domain for node in lowered.proto.graph.node] == [LOWERED_DOMAIN]
