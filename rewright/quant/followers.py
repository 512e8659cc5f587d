"""What adds a constant vector to a product, and can leave that to the product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rewright.model.edit import Editor, domain_of
from rewright.model.facts import attribute, is_constant
from rewright.ops.microsoft import DOMAIN
from rewright.ops.normalization import SKIP_LAYER_NORMALIZATION_EPSILON
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value

_SKIP_BIAS: Final = 4
_SUM_OUTPUT: Final = 3
_LAYER_NORM_SINCE: Final = 17
_SUMMANDS: Final = {"BiasGelu": (0,), "FastGelu": (0,), "SkipLayerNormalization": (0, 1)}
_BIASES: Final = {"BiasGelu": 1, "FastGelu": 1, "SkipLayerNormalization": _SKIP_BIAS}


def follower_of(editor: Editor, node: Any) -> tuple[Any, Any] | None:
    """The node that alone reads the product and adds a constant to it, and the constant.

    Add; BiasGelu and FastGelu with a bias, of which the op without one is left; SkipLayerNormalization with a bias.
    """
    output = node.outputs[0]
    readers = editor.consumers(output)
    if editor.is_graph_output(output) or len(readers) != 1:
        return None
    follower = readers[0]
    if editor.graph_of(follower) is not editor.graph_of(node) or sum(tensor is output for tensor in follower.inputs) != 1:
        return None
    place = next(index for index, tensor in enumerate(follower.inputs) if tensor is output)
    if follower.op == "Add" and not domain_of(follower):
        constant = follower.inputs[1 - place]
    elif domain_of(follower) == DOMAIN and place in _SUMMANDS.get(follower.op, ()):
        index = _BIASES[follower.op]
        constant = follower.inputs[index] if index < len(follower.inputs) else None
    else:
        return None
    if constant is None or not constant.name or not is_constant(constant):
        return None
    return follower, constant


def without_bias(op: Builder, follower: Any, product: Any, biased: Value, *, splits_norm: bool) -> list[tuple[Any, Value]]:
    """Makes the follower anew on a product that has the bias already; its outputs, old and new.

    Gelu(x + b) of x + b, which ONNX Runtime computes faster without the bias; FastGelu and SkipLayerNormalization alike.

    Args:
        op: makes the new nodes.
        follower: the op with a bias.
        product: what it reads.
        biased: the product with the bias.
        splits_norm: whether SkipLayerNormalization becomes a sum and LayerNormalization where that gives the same.
    """
    inputs = [biased if tensor is product else Value(tensor) if tensor.name else None for tensor in follower.inputs]
    del inputs[_BIASES[follower.op] :]
    if splits_norm and follower.op == "SkipLayerNormalization" and op.opset >= _LAYER_NORM_SINCE:
        statistics = [tensor for tensor in follower.outputs[1:_SUM_OUTPUT] if tensor.name]
        if not statistics:
            return _sum_and_norm(op, follower, inputs)
    kind = "Gelu" if follower.op == "BiasGelu" else follower.op
    given = tuple(bool(tensor.name) for tensor in follower.outputs)
    attributes = dict(follower.attrs)
    getattr(op, kind)(*inputs, domain=DOMAIN, outputs=given if len(given) > 1 else (True,), **attributes)
    outputs = [Value(tensor) for tensor in op.nodes[-1].outputs]
    return [(old, new) for old, new in zip(follower.outputs, outputs, strict=True) if old.name]


def _sum_and_norm(op: Builder, follower: Any, inputs: Sequence[Value | None]) -> list[tuple[Any, Value]]:
    """SkipLayerNormalization(x, skip, gamma, beta) as LayerNormalization(x + skip).

    ONNX Runtime's CPU kernel of LayerNormalization is vectorised, that of SkipLayerNormalization is not: 0.4 against 3.2 ms
    for 1024 rows of 768 in version 1.32, where it was a fifth of a quantized BERT. The sum is a Sum, not an Add, because ONNX
    Runtime would fuse that again when it loads the model.
    """
    x, skip, *parameters = inputs
    epsilon = attribute(follower, "epsilon", SKIP_LAYER_NORMALIZATION_EPSILON)
    total = op.Sum(x, skip)
    output = op.LayerNormalization(total, *parameters, axis=-1, epsilon=epsilon)
    results = [(follower.outputs[0], output)]
    if len(follower.outputs) > _SUM_OUTPUT and follower.outputs[_SUM_OUTPUT].name:
        results.append((follower.outputs[_SUM_OUTPUT], total))
    return results
