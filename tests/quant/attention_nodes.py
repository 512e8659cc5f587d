"""Models of one com.microsoft.Attention, with every sort of input that it takes."""

from __future__ import annotations

import numpy as np
from integer_models import weights
from onnx import helper, numpy_helper

HEADS, SIZE = 2, 4
WIDTH = HEADS * SIZE
X = np.random.default_rng(1).standard_normal((2, 5, WIDTH)).astype(np.float32)
MASKS = {
    "raw": np.asarray([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]], np.int32),
    "lengths": np.asarray([3, 5], np.int32),
    "ends and starts": np.asarray([3, 5, 1, 0], np.int32),
    "each query": np.tril(np.ones((2, 5, 5), np.int32)),
}
SCORES = np.random.default_rng(2).standard_normal((2, HEADS, 5, 5)).astype(np.float32)
PAST = np.random.default_rng(3).standard_normal((2, 2, HEADS, 3, SIZE)).astype(np.float32)


def attention(*, bias=True, mask=None, scores=False, past=False, values=WIDTH, **attributes):
    """The model and what to feed it."""
    feeds = {"x": X}
    if mask:
        feeds["mask"] = MASKS[mask]
    if past:
        feeds["past"] = PAST
    if scores:
        feeds["scores"] = SCORES
    constants = {"w": weights(WIDTH, 2 * WIDTH + values) * 3}
    if bias:
        constants["b"] = weights(2 * WIDTH + values, seed=1)
    names = ["x", "w", "b" if bias else "", *(name if name in feeds else "" for name in ("mask", "past", "scores"))]
    while not names[-1]:
        names.pop()
    if values != WIDTH:
        attributes["qkv_hidden_sizes"] = [WIDTH, WIDTH, values]
    results = ["y", "present"] if past else ["y"]
    node = helper.make_node("Attention", names, results, name="att", domain="com.microsoft", num_heads=HEADS, **attributes)
    kind = {np.dtype(np.float32): 1, np.dtype(np.int32): 6}
    inputs = [helper.make_tensor_value_info(name, kind[array.dtype], array.shape) for name, array in feeds.items()]
    shapes = [[2, 5, values], [2, 2, HEADS, 8, SIZE]]
    made = [helper.make_tensor_value_info(name, 1, shape) for name, shape in zip(results, shapes, strict=False)]
    graph = helper.make_graph(
        [node], "g", inputs, made, [numpy_helper.from_array(each, name) for name, each in constants.items()]
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8), feeds
