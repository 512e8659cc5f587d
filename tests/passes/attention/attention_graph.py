"""Writes graphs with attention node by node, runs the attention passes on them, and compares numbers, NaNs included."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper
from pass_harness import as_model, run_pass

from rewright.model.carrier import Model
from rewright.passes.attention.fusing import AttentionPass
from rewright.passes.fusion.multi_head_attention import MultiHeadAttention

INT64, BOOL, FLOAT = TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT
FUSED = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
LOWEST = float(np.finfo(np.float32).min)
INF = float("inf")


class Graph:
    """``graph("Add", x, y)`` appends a node and returns the name of its output."""

    def __init__(self, opset: int = 17) -> None:
        self.opset = opset
        self.nodes: list[Any] = []
        self.initializers: list[TensorProto] = []
        self.inputs: list[Any] = []
        self.results: list[Any] = []

    def __call__(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"{op}_{len(self.nodes)}{'abcdefg'[index] if outputs > 1 else ''}" for index in range(outputs)]
        name = f"n{len(self.nodes)}_{op}"
        self.nodes.append(helper.make_node(op, list(inputs), names, name, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def input(self, name: str, *dims: int | str, elem_type: int = FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, elem_type, dims))
        return name

    def output(self, value: str, rank: int, elem_type: int = FLOAT) -> str:
        result = f"y{len(self.results)}"
        self.nodes.append(helper.make_node("Identity", [value], [result], f"out_{result}"))
        self.results.append(helper.make_tensor_value_info(result, elem_type, [None] * rank))
        return result

    def array(self, values: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(values, dtype, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        return self.array(values, np.int64)

    def weight(self, *shape: int) -> str:
        rng = np.random.default_rng(len(self.initializers))
        return self.array(rng.normal(0, 0.5, shape))

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self("Unsqueeze", x, self.ints(*axes)) if self.opset >= 13 else self("Unsqueeze", x, axes=axes)

    def squeeze(self, x: str, *axes: int) -> str:
        return self("Squeeze", x, self.ints(*axes)) if self.opset >= 13 else self("Squeeze", x, axes=axes)

    def split(self, x: str, axis: int, *sizes: int) -> list[str]:
        if self.opset >= 13:
            return self("Split", x, self.ints(*sizes), axis=axis, outputs=len(sizes))
        return self("Split", x, axis=axis, split=sizes, outputs=len(sizes))

    def dim(self, x: str, axis: int) -> str:
        """One length, as a vector of one number."""
        return self("Gather", self("Shape", x), self.ints(axis), axis=0)

    def heads(self, x: str, count: int, size: int) -> str:
        """(batch, positions, count * size) as (batch, count, positions, size)."""
        return self("Transpose", self("Reshape", x, self.ints(0, 0, count, size)), perm=[0, 2, 1, 3])

    def merged(self, x: str, width: int) -> str:
        return self("Reshape", self("Transpose", x, perm=[0, 2, 1, 3]), self.ints(0, 0, width))

    def model(self) -> ModelProto:
        graph = helper.make_graph(self.nodes, "attention", self.inputs, self.results, self.initializers)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=7 if self.opset < 20 else 10)


class Basic(Graph):
    """Two heads of size 4 over q (B, S, 8), k and v (B, T, 8): ``scores`` and ``attended`` are what lies between changes."""

    def __init__(self, opset: int = 17, keys: str | int = "T", queries: str | int = "S", batch: str | int = "B") -> None:
        super().__init__(opset)
        lengths = {"q": queries, "k": keys, "v": keys}
        self.q, self.k, self.v = (self.heads(self.input(name, batch, length, 8), 2, 4) for name, length in lengths.items())
        self.mask_dims = (batch, keys)

    def scores(self) -> str:
        product = self("MatMul", self.q, self("Transpose", self.k, perm=[0, 1, 3, 2]))
        return self("Mul", product, self.array(0.5))

    def mask(self) -> str:
        """(B, T), of zeros and ones."""
        return self.input("mask", *self.mask_dims, elem_type=INT64)

    def kept(self) -> str:
        """(B, 1, 1, T) booleans."""
        return self("Cast", self.unsqueeze(self.mask(), 1, 2), to=BOOL)

    def finish(self, scores: str, **softmax: Any) -> ModelProto:
        self.attend(self("Softmax", scores, **{"axis": -1, **softmax}))
        return self.model()

    def attend(self, probabilities: str) -> str:
        return self.output(self.merged(self("MatMul", probabilities, self.v), 8), 3)


def feeds_for(model: ModelProto, seed: int = 0, spread: float = 1.0, **sizes: int) -> dict[str, Any]:
    """Random inputs; dimensions by name. Masks hold zeros and ones, and the last row is wholly masked."""
    rng, feeds = np.random.default_rng(seed), {}
    for value in model.graph.input:
        held = value.type.tensor_type
        shape = [sizes[dim.dim_param] if dim.dim_param else dim.dim_value for dim in held.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(held.elem_type)
        if dtype.kind == "f":
            feeds[value.name] = np.asarray(spread * rng.standard_normal(shape), dtype)
        else:
            array = rng.integers(0, 2, shape)
            if array.ndim:
                array[-1:] = 0
            feeds[value.name] = array.astype(dtype)
    return feeds


def fuse(model: ModelProto, current: AttentionPass | None = None, target: Any = "cpu") -> tuple[Any, Model]:
    """The session and the result of one pass."""
    return run_pass(current or MultiHeadAttention(), model, target)


def count(after: Model) -> int:
    """How many attention ops there are."""
    return sum(node.op_type in FUSED for node in after.proto.graph.node)


def session_of(model: Any) -> Any:
    """A session with every optimization of ONNX Runtime switched off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", Model.SESSION_FOLDER)
    loaded = as_model(model)
    return ort.InferenceSession(loaded.session_bytes(), options, providers=["CPUExecutionProvider"])


def run(model: Any, feeds: dict[str, Any]) -> list[Any]:
    """The outputs."""
    return list(session_of(model).run(None, feeds))


def assert_same(before: ModelProto, after: Model, *sets: dict[str, Any], tolerance: float = 2e-5) -> None:
    """Both models give the same numbers, in the same shapes, with the same NaNs."""
    first, second = session_of(before), session_of(after)
    for feeds in sets:
        for expected, actual in zip(first.run(None, feeds), second.run(None, feeds), strict=True):
            assert expected.dtype == actual.dtype
            assert expected.shape == actual.shape
            np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_equal(before: ModelProto, after: Model, **sizes: int) -> None:
    """The same numbers for batches 1 and 3, and sequences 1 and 5."""
    sets = [
        feeds_for(before, batch + length, **{"B": batch, "S": length, "T": length, **sizes})
        for batch in (1, 3)
        for length in (1, 5)
    ]
    assert_same(before, after, *sets)


def assert_fused(model: ModelProto, current: AttentionPass | None = None, expected: int = 1, **sizes: int) -> Model:
    """The pass makes so many attention ops, and no number changes."""
    session, after = fuse(model, current)
    assert count(after) == expected, session.rejections
    assert_equal(model, after, **sizes)
    return after


def assert_refused(model: ModelProto, reason: str, current: AttentionPass | None = None) -> None:
    """The pass leaves the model alone, for a reason that says so."""
    session, after = fuse(model, current)
    assert count(after) == 0
    assert any(reason in item.reason for item in session.rejections), session.rejections
