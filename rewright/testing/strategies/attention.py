"""Attention in the spellings of exporters: projections, heads, scale, masks, causality, shared keys, caches, merging."""

from __future__ import annotations

import itertools

import numpy as np
from onnx import TensorProto, numpy_helper

from rewright.testing.strategies.masks import masked
from rewright.testing.strategies.normalizations import norm_op
from rewright.testing.strategies.products import linear
from rewright.testing.strategies.rotary import rotated_heads
from rewright.testing.strategies.writer import BOOL, Attributes, Dims, Part, Value, Writer


def attention(w: Writer) -> Value:
    """softmax(scale Q Kᵀ + mask) V over heads, with its output projection, and perhaps the residual."""
    x = w.pick(*w.values)
    source = norm_op(w) if w.chance() else w.op("Tanh", x)
    query, key, value = _projected(w, source)
    if w.rarely():
        query, key = rotated_heads(w, query, key, source)
    key, value = _with_past(w, key, value)
    key, value = _shared(w, key, value)
    scores = _scores(w, query, key, source)
    scores = masked(w, scores, source, key)
    attributes: Attributes = {"axis": w.pick(-1, 3)} if w.chance() else {}
    probabilities = w.op("Softmax", scores, **attributes)
    probabilities = _guarded(w, probabilities)
    if w.rarely():
        probabilities = w.op("Dropout", probabilities)
    context = w.op("MatMul", probabilities, value, dims=query.dims)
    result = linear(w, _merged(w, context, source))
    return w.commuted("Add", result, x) if w.chance() else result


def _projected(w: Writer, x: Value) -> tuple[Value, Value, Value]:
    """Q, K, V of (batch, heads, positions, size); K and V may have half the heads."""
    sizes = w.sizes
    fewer = sizes.heads // 2 if sizes.heads % 2 == 0 and w.chance() and w.chance() else sizes.heads
    if fewer != sizes.heads or w.chance():
        flat = [linear(w, x, count * sizes.size) for count in (sizes.heads, fewer, fewer)]
        counts = [sizes.heads, fewer, fewer]
    else:
        packed = linear(w, x, 3 * sizes.hidden)
        if w.chance():
            flat = w.split(packed, 2, 3)
        else:
            edges = [0, sizes.hidden, 2 * sizes.hidden, 2**63 - 1]
            dims = (*x.dims[:2], sizes.hidden)
            flat = [
                w.op("Slice", packed, w.integers(a), w.integers(b), w.integers(2), dims=dims)
                for a, b in itertools.pairwise(edges)
            ]
        counts = [sizes.heads] * 3
    query, key, value = (_split(w, part, count, x) for part, count in zip(flat, counts, strict=True))
    return query, key, value


def _split(w: Writer, x: Value, count: int, source: Value) -> Value:
    dims: Dims = (*x.dims[:2], count, w.sizes.size)
    return w.transpose(w.reshape(x, source, dims), 0, 2, 1, 3)


def _merged(w: Writer, context: Value, source: Value) -> Value:
    rows = w.transpose(context, 0, 2, 1, 3)
    return w.reshape(rows, source, w.sizes.stream)


def _with_past(w: Writer, key: Value, value: Value) -> tuple[Value, Value]:
    """Keys and values of earlier steps, as inputs, in front of the new ones; both are outputs again."""
    if w is not w.root or not w.rarely() or isinstance(w.sizes.batch, int):
        return key, value
    joined, layer = [], w.fresh(w.kind, ()).name
    for name, new in (("key", key), ("value", value)):
        batch, count, _, size = new.dims
        if not isinstance(count, int) or not isinstance(size, int):
            return key, value
        past = w.input(f"past_{layer}_{name}", w.kind, w.sizes.batch, count, "past", size)
        joined.append(w.op("Concat", past, new, dims=[batch, count, None, size], axis=w.pick(2, -2)))
    w.others.extend(joined)
    return joined[0], joined[1]


def _shared(w: Writer, key: Value, value: Value) -> tuple[Value, Value]:
    """Each of fewer heads of keys and values repeated for the queries that share it."""
    heads = w.sizes.heads
    if key.dims[1] == heads:
        return key, value
    return _repeated(w, key), _repeated(w, value)


def _repeated(w: Writer, x: Value) -> Value:
    batch, count, positions, size = x.dims
    if not isinstance(count, int) or not isinstance(size, int):
        return x
    times = w.sizes.heads // count
    wide = w.unsqueeze(x, 2)
    target = w.op("Concat", w.size(x, 0), w.integers(count, times), w.size(x, 2), w.integers(size), dims=[5], axis=0)
    wide = w.op("Expand", wide, target, dims=[batch, count, times, positions, size])
    shape = w.op("Concat", w.size(x, 0), w.integers(count * times), w.size(x, 2), w.integers(size), dims=[4], axis=0)
    return w.op("Reshape", wide, shape, dims=[batch, count * times, positions, size])


def _scores(w: Writer, query: Value, key: Value, source: Value) -> Value:
    """scale Q Kᵀ; the scale at the product, at one operand or its root at both, right or another number."""
    at = w.pick("product", "query", "key", "both", "none")
    scale = w.nearly(1.0, 0.5, 1.1) / np.sqrt(w.sizes.size)
    if at in ("query", "both"):
        query = _scaled(w, query, scale if at == "query" else np.sqrt(scale), source)
    transposed = w.transpose(key, 0, 1, 3, 2)
    if at in ("key", "both"):
        transposed = _scaled(w, transposed, scale if at == "key" else np.sqrt(scale), source)
    product = w.op("MatMul", query, transposed, dims=[*query.dims[:3], key.dims[2]])
    return _scaled(w, product, scale, source) if at == "product" else product


def _scaled(w: Writer, x: Value, scale: float, source: Value) -> Value:
    form = w.pick("Mul", "Div", "root", "computed")
    if form == "Mul":
        return w.commuted("Mul", x, w.scalar(scale))
    if form == "Div":
        return w.op("Div", x, w.scalar(1 / scale))
    if form == "root":
        return w.op("Div", x, w.op("Sqrt", w.scalar(scale**-2)))
    width = w.op("Div", w.cast(w.size(source, 2), w.kind), w.scalar(w.sizes.heads))
    root = w.op("Sqrt", width)
    return w.op("Div", x, root) if w.chance() else w.commuted("Mul", x, w.op("Reciprocal", root))


def _guarded(w: Writer, probabilities: Value) -> Value:
    """NaN replaced by zero, as PyTorch writes it for rows that are masked throughout."""
    if not w.rarely():
        return probabilities
    missing = w.op("IsNaN", probabilities, kind=BOOL)
    return w.op("Where", missing, w.scalar(0.0), probabilities, kind=w.kind, dims=probabilities.dims)


def attention_op(w: Writer) -> Value:
    """ai.onnx Attention, with optional inputs."""
    if w.opset < 23 or w.kind != TensorProto.FLOAT:
        return attention(w)
    x = w.op("Tanh", w.read())
    heads: Attributes = {"q_num_heads": w.sizes.heads, "kv_num_heads": w.sizes.heads}
    if w.chance():
        heads["is_causal"] = 1
    attributes: Attributes = {"scale": 0.4} if w.chance() else {}
    query, key, value = (linear(w, x) for _ in range(3))
    if w.chance():
        return w.op("Attention", query, key, value, dims=x.dims, **heads, **attributes)
    shape = w.op("Concat", w.size(x, 1), w.size(x, 1), dims=[2], axis=0)
    zero = numpy_helper.from_array(np.asarray([-0.5], np.float32))
    bias = w.op("ConstantOfShape", shape, kind=w.kind, dims=[w.sizes.sequence] * 2, value=zero)
    return w.op("Attention", query, key, value, bias, dims=x.dims, **heads, **attributes)


PARTS: dict[str, Part] = {"attention": attention, "attention-op": attention_op}
