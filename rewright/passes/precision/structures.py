"""Parts of a graph that stay in float32 whatever their numbers are: variances, integers in the making, angles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from rewright.model.elements import normal_domain
from rewright.model.facts import attribute, constant_of, dtype_of, is_small_constant, producer, shape_of

_MEANS: Final = {"ReduceMean", "ReduceSum"}
_TO_THE_ROOT: Final = {"Add", "Max", "Clip", "Sqrt", "Reciprocal", "Pow", "Squeeze", "Unsqueeze", "Reshape", "Mul", "Div"}
_OF_INDICES: Final = {
    "Add", "Sub", "Mul", "Div", "Floor", "Ceil", "Round", "Log", "Exp", "Pow", "Sqrt", "Abs", "Neg", "Min", "Max", "Clip",
    "Sign", "Mod", "Where", "Cast", "Concat", "Slice", "Gather", "Squeeze", "Unsqueeze", "Reshape", "Expand", "Identity",
    "Transpose", "CumSum", "Trilu",
}  # fmt: skip
_ALWAYS: Final = {
    "ReduceSumSquare": "it adds up squares",
    "ReduceL2": "it adds up squares",
    "ReduceProd": "it multiplies what it reduces",
    "ReduceLogSumExp": "it adds up exponentials",
    "ReduceLogSum": "its sum may overflow",
    "LpNormalization": "it adds up powers",
    "LpPool": "it adds up powers",
    "GlobalLpPool": "it adds up powers",
    "MeanVarianceNormalization": "it adds up squares",
    "CumSum": "its sum grows with the length",
    "CumProd": "its product grows with the length",
}
_SUMS: Final = {"ReduceMean", "ReduceSum", "ReduceL1", "GlobalAveragePool", "AveragePool"}
_ANGLES: Final = {"Sin", "Cos", "Tan"}
MOST_RADIANS: Final = 8.0
"""Where an angle of float16 begins to be off by more than 0.002."""


def always_wide(node: Any) -> str:
    """Why the op computes in float32 whatever it is given; empty if it need not."""
    return _ALWAYS.get(node.op, "") if not normal_domain(node.domain) else ""


def is_angle(tensor: Any) -> bool:
    """Whether a sine or the like is taken of the value."""
    return any(user.op in _ANGLES for user in tensor.outputs if not normal_domain(user.domain))


def terms_of(node: Any) -> int | None:
    """How many numbers the node adds up for each result: 1 where it does not add up, None where that is not known."""
    if normal_domain(node.domain) or node.op not in _SUMS:
        return 1
    shape = shape_of(node.inputs[0])
    if shape is None:
        return None
    if node.op == "AveragePool":
        return _product(attribute(node, "kernel_shape", []))
    if node.op == "GlobalAveragePool":
        return _product(shape[2:])
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1].name:
        if not is_small_constant(node.inputs[1], 64):
            return None
        axes = constant_of(node.inputs[1])
    if axes is None or len(axes) == 0:
        return 1 if attribute(node, "noop_with_empty_axes", 0) else _product(shape)
    chosen = [int(axis) for axis in axes]
    return _product([shape[axis] for axis in chosen]) if all(-len(shape) <= axis < len(shape) for axis in chosen) else None


def _product(sizes: Iterable[Any]) -> int | None:
    total = 1
    for size in sizes:
        if not isinstance(size, int):
            return None
        total *= size
    return total


def variances(nodes: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    """The nodes of normalisations that are written out, from what is squared to the division by the root."""
    for node in nodes:
        if not _is_square(node):
            continue
        means = [user for user in node.outputs[0].outputs if user.op in _MEANS and not normal_domain(user.domain)]
        if not means:
            continue
        reason = "squares of small rows vanish and those of large ones overflow on the way to a root"
        squared = node.inputs[0]
        for part in (node, *means, *_difference(squared), *_behind(means, squared)):
            yield part, reason


def _is_square(node: Any) -> bool:
    if normal_domain(node.domain) or len(node.inputs) < 2:
        return False
    if node.op == "Mul":
        return node.inputs[0] is node.inputs[1]
    if node.op != "Pow" or not is_small_constant(node.inputs[1], 1):
        return False
    exponent = constant_of(node.inputs[1])
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0


def _difference(squared: Any) -> Iterator[Any]:
    """What is squared is a difference from the mean, as a rule: both count, or their rounding does."""
    node = producer(squared)
    if node is None or node.op != "Sub" or normal_domain(node.domain):
        return
    mean = producer(node.inputs[1])
    if mean is not None and mean.op == "ReduceMean" and mean.inputs[0] is node.inputs[0]:
        yield from (mean, node)


def _behind(means: list[Any], squared: Any) -> Iterator[Any]:
    """From the mean of the squares up to where what is squared is divided by the root, or multiplied by its inverse."""
    pending, seen = [user for mean in means for user in mean.outputs[0].outputs], set[int]()
    while pending:
        node = pending.pop()
        if id(node) in seen or normal_domain(node.domain) or node.op not in _TO_THE_ROOT:
            continue
        seen.add(id(node))
        yield node
        is_end = node.op in ("Mul", "Div") and any(item is squared for item in node.inputs)
        if not is_end and len(seen) < _LONGEST:
            pending.extend(node.outputs[0].outputs)


_LONGEST: Final = 8


def indices(nodes: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    """The nodes whose results become integers: lengths, positions, buckets, which rounding would move."""
    pending = [node.inputs[0] for node in nodes if _makes_integers(node)]
    seen: set[int] = set()
    while pending:
        node = producer(pending.pop())
        if node is None or id(node) in seen or normal_domain(node.domain) or node.op not in _OF_INDICES:
            continue
        seen.add(id(node))
        yield node, "integers are made of it, which rounding would move"
        pending.extend(tensor for tensor in node.inputs if (dtype := dtype_of(tensor)) is not None and dtype.kind == "f")


def moved_batches(nodes: Iterable[Any]) -> Iterator[tuple[Any, str]]:
    """Transposes that put the first axis behind the others, the last one aside, before a product by a matrix.

    ONNX Runtime dies of a cast to float32 between the two when it loads the model for a CPU with all its optimizations:
    MatmulTransposeFusion moves the cast ahead of the Transpose, then leaves the product as it is, and NchwcTransformer looks at
    the new nodes, which nobody has resolved (microsoft/onnxruntime#28392). It puts such a cast itself where the product is of
    float16, also into a model that was made for another target.
    """
    for node in nodes:
        if node.op != "Transpose" or normal_domain(node.domain):
            continue
        perm = [int(axis) for axis in attribute(node, "perm", [])]
        rank = len(perm)
        if rank < 3 or perm not in ([*range(1, rank - 1), 0, rank - 1], [*range(1, rank), 0]):
            continue
        products = [user for user in node.outputs[0].outputs if user.op == "MatMul" and not normal_domain(user.domain)]
        if not all(map(_has_equal_ranks, products)):
            yield node, "ONNX Runtime dies of a cast between it and a product, where it optimizes for a CPU"


def _has_equal_ranks(product: Any) -> bool:
    shapes = [shape_of(tensor) for tensor in product.inputs]
    return all(shape is not None and len(shape) == len(shapes[0] or ()) for shape in shapes)


def _makes_integers(node: Any) -> bool:
    if normal_domain(node.domain) or node.op != "Cast":
        return False
    source, made = dtype_of(node.inputs[0]), dtype_of(node.outputs[0])
    return source is not None and source.kind == "f" and made is not None and made.kind in "iu"
