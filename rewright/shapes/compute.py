"""Dimensions of what computes: elementwise ops, products, reductions, convolutions and their like."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_graphsurgeon as gs

from rewright.model.facts import attribute, constant_node_value, constant_of, is_small_constant
from rewright.shapes import dimensions, terms
from rewright.shapes.dimensions import Size
from rewright.shapes.items import Item
from rewright.shapes.layout import axis_of
from rewright.shapes.rule import Dims, Known, Rule

_BROADCASTS_LIKE_NUMPY: Final = 7
_REDUCTION_AXES_ARE_INPUTS: Final = 18


def same(known: Known, node: Any) -> list[Dims | None] | None:
    """Every output has the first input's dimensions."""
    dims = known.dims(node.inputs[0])
    return [list(dims)] * len(node.outputs) if dims is not None else None


def first_same(known: Known, node: Any) -> list[Dims | None] | None:
    """The first output has the first input's dimensions."""
    dims = known.dims(node.inputs[0])
    return [list(dims), *([None] * (len(node.outputs) - 1))] if dims is not None else None


def elementwise(known: Known, node: Any) -> list[Dims | None] | None:
    """Broadcasting."""
    if known.opset < _BROADCASTS_LIKE_NUMPY:
        return None
    shapes: list[Dims] = []
    for tensor in node.inputs:
        dims = known.dims(tensor) if tensor.name else None
        if dims is None:
            return None
        shapes.append(list(dims))
    return [known.broadcast(shapes)]


def normalized(known: Known, node: Any) -> list[Dims | None] | None:
    """LayerNormalization and RMSNormalization: scale and bias broadcast to the input; statistics have ones from the axis on."""
    dims, scale = known.dims(node.inputs[0]), known.dims(node.inputs[1]) if len(node.inputs) > 1 else None
    if dims is None:
        return None
    axis = axis_of(node, -1, len(dims))
    if scale is not None and len(scale) == 1 and axis == len(dims) - 1 and dimensions.never_one(scale[0]):
        known.equal(dims[-1], scale[0])
    if axis is None:
        return [list(dims), *([None] * (len(node.outputs) - 1))]
    statistics: Dims = [*dims[:axis], *([1] * (len(dims) - axis))]
    return [list(dims), *([statistics] * (len(node.outputs) - 1))]


def matmul(known: Known, node: Any) -> list[Dims | None] | None:
    """Contraction of the last axis of one with the last but one of the other; the axes before broadcast."""
    left, right = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    if not left or not right:
        return None
    known.equal(left[-1], right[-2] if len(right) > 1 else right[0])
    before = known.broadcast([list(left[:-2]), list(right[:-2])])
    return [[*before, *left[-2:-1], *(right[-1:] if len(right) > 1 else [])]]


def _gemm(known: Known, node: Any) -> list[Dims | None] | None:
    left, right = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    rows, inner = reversed(left) if attribute(node, "transA", 0) else left
    other, columns = reversed(right) if attribute(node, "transB", 0) else right
    known.equal(inner, other)
    return [[rows, columns]]


def _einsum(known: Known, node: Any) -> list[Dims | None] | None:
    equation = attribute(node, "equation")
    if not isinstance(equation, str):
        return None
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    operands = inputs.split(",")
    shapes = [known.dims(tensor) for tensor in node.inputs]
    if len(operands) != len(shapes):
        return None
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        output = ("..." if "." in inputs else "") + "".join(sorted(one for one in letters if letters.count(one) == 1))
    found: dict[str | int, Item] = {}
    hidden = 0
    for letters, dims in zip(operands, shapes, strict=True):
        if dims is None and "." not in letters:
            continue
        names = _einsum_axes(letters, len(dims) - len(letters.replace(".", ""))) if dims is not None else None
        if dims is None or names is None or len(names) != len(dims):
            return None
        hidden = max(hidden, sum(isinstance(name, int) for name in names))
        for name, dim in zip(names, dims, strict=True):
            held = found.get(name)
            found[name] = dim if held is None else terms.broadcast(held, dim)
    wanted = _einsum_axes(output, hidden)
    return [[found.get(name) for name in wanted]] if wanted is not None else None


def _einsum_axes(text: str, hidden: int) -> list[str | int] | None:
    """A name for each axis: letters, and for the axes of an ellipsis numbers, since those are aligned at their end."""
    before, dots, after = text.partition("...")
    if "." in before + after or hidden < 0:
        return None
    return [*before, *(range(-hidden, 0) if dots else ()), *after]


def _reduce(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    keeps = attribute(node, "keepdims", 1)
    if dims is None or not isinstance(keeps, int):
        return None
    since = 13 if node.op == "ReduceSum" else _REDUCTION_AXES_ARE_INPUTS
    axes = known.setting(node, "axes", 1, since, [])
    if axes is None:
        return [[None] * len(dims)] if keeps else None
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return [list(dims)]
    gone = {axis % len(dims) for axis in axes} if axes and dims else set(range(len(dims)))
    return [[1 if axis in gone else dim for axis, dim in enumerate(dims) if keeps or axis not in gone]]


def _arg_reduce(known: Known, node: Any) -> list[Dims | None] | None:
    dims, keeps = known.dims(node.inputs[0]), attribute(node, "keepdims", 1)
    axis = axis_of(node, 0, len(dims)) if dims is not None else None
    if dims is None or axis is None or not isinstance(keeps, int):
        return None
    return [[*dims[:axis], *([1] if keeps else []), *dims[axis + 1 :]]]


def _top_k(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    axis = axis_of(node, -1, len(dims)) if dims is not None else None
    if dims is None or axis is None:
        return None
    count: Item = attribute(node, "k")
    if len(node.inputs) > 1:
        held = known.items(node.inputs[1])
        count = held.items[0] if held is not None and len(held.items) == 1 else None
    return [[*dims[:axis], count, *dims[axis + 1 :]]] * 2


def _range(known: Known, node: Any) -> list[Dims | None] | None:
    """ceil((limit - start) / delta), not less than 0."""
    start, limit, delta = (_scalar(known, tensor) for tensor in node.inputs)
    if start is None or limit is None or not isinstance(delta, int) or delta == 0:
        return [[None]]
    length = dimensions.add(limit, start, -1) if delta > 0 else dimensions.add(start, limit, -1)
    if length is None:
        return [[None]]
    return [[terms.ceil_divide(terms.maximum(length, 0), abs(delta))]]


def _scalar(known: Known, tensor: Any) -> Item:
    value = known.items(tensor)
    if value is not None:
        return value.items[0] if len(value.items) == 1 else None
    if is_small_constant(tensor, 1):  # Range counts in floats, too
        held = constant_of(tensor)
        number = float(held.reshape(-1)[0]) if held is not None and held.size == 1 and held.dtype.kind in "fiu" else 0.5
        return int(number) if number.is_integer() and abs(number) < 2**24 else None
    return None


def _constant_of_shape(known: Known, node: Any) -> list[Dims | None] | None:
    wanted = known.items(node.inputs[0])
    if wanted is not None and wanted.is_vector:
        return [list(wanted.items)]
    length = known.dims(node.inputs[0])
    return [[None] * length[0]] if length and isinstance(length[0], int) else None


def _shape(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    start, end = attribute(node, "start", 0), attribute(node, "end", None)
    return [[len(dims[slice(start, end)]) if dims is not None else None]]


def _scalar_output(known: Known, node: Any) -> list[Dims | None] | None:
    return [[]]


def _one_hot(known: Known, node: Any) -> list[Dims | None] | None:
    dims, depth = known.dims(node.inputs[0]), known.items(node.inputs[1])
    axis = axis_of(node, -1, len(dims) + 1) if dims is not None else None
    if dims is None or axis is None:
        return None
    count = depth.items[0] if depth is not None and len(depth.items) == 1 else None
    return [[*dims[:axis], count, *dims[axis:]]]


def _conv(known: Known, node: Any) -> list[Dims | None] | None:
    dims, weight = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    if dims is None or weight is None or len(dims) != len(weight):
        return None
    group = attribute(node, "group", 1)
    held = dimensions.multiply(weight[1], group) if isinstance(group, int) else None
    if held is not None:
        known.equal(dims[1], held)
    return [[dims[0], weight[0], *_windows(known, node, dims[2:], weight[2:])]]


def _pool(known: Known, node: Any) -> list[Dims | None] | None:
    dims, kernel = known.dims(node.inputs[0]), attribute(node, "kernel_shape")
    if dims is None or not isinstance(kernel, list) or len(kernel) != len(dims) - 2:
        return None
    return [[dims[0], dims[1], *_windows(known, node, dims[2:], kernel)]] * len(node.outputs)


def _windows(known: Known, node: Any, dims: list[Size], kernel: list[Any]) -> Dims:
    """How many positions a sliding window has along each axis.

    ONNX Runtime refuses a Conv whose kernel does not fit. A pooling window that does not fit is counted with a division that
    rounds towards 0.
    """
    count = len(dims)
    strides, dilations = attribute(node, "strides", [1] * count), attribute(node, "dilations", [1] * count)
    pads, auto = attribute(node, "pads", [0] * (2 * count)), attribute(node, "auto_pad", "NOTSET")
    kernel = attribute(node, "kernel_shape", kernel)
    settings = (strides, dilations, pads, kernel)
    if not all(isinstance(held, list) and all(isinstance(item, int) for item in held) for held in settings):
        return [None] * count
    found: Dims = []
    for axis, dim in enumerate(dims):
        stride, reach = strides[axis], dilations[axis] * (kernel[axis] - 1)
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            found.append(terms.ceil_divide(dim, stride))
            continue
        padded = dimensions.add(dim, (pads[axis] + pads[axis + count] if auto == "NOTSET" else 0) - reach - 1)
        steps: Item = None
        if padded is not None and auto in ("NOTSET", "VALID"):
            if attribute(node, "ceil_mode", 0) != 0:
                # The last window may not start in the padding, which depends on the number: only numbers are certain.
                steps = _ceil_mode(dim, padded, stride, pads[axis] if auto == "NOTSET" else 0)
            elif node.op == "Conv":
                known.not_negative(padded)
                steps = terms.floor_divide(padded, stride)
            else:
                steps = terms.truncated_divide(padded, stride)
        found.append(dimensions.add(steps, 1) if steps is not None else None)
    return found


def _ceil_mode(dim: Size, padded: Size, stride: int, begin: int) -> Item:
    if not isinstance(dim, int) or not isinstance(padded, int) or padded < 0:
        return None
    steps = -(-padded // stride)
    return steps - 1 if steps * stride >= dim + begin else steps


def _conv_transpose(known: Known, node: Any) -> list[Dims | None] | None:
    dims, weight = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    group = attribute(node, "group", 1)
    if dims is None or weight is None or len(dims) != len(weight) or not isinstance(group, int):
        return None
    count = len(dims) - 2
    channels = dimensions.multiply(weight[1], group)
    strides, dilations = attribute(node, "strides", [1] * count), attribute(node, "dilations", [1] * count)
    pads, extra = attribute(node, "pads", [0] * (2 * count)), attribute(node, "output_padding", [0] * count)
    kernel = attribute(node, "kernel_shape", weight[2:])
    plain = all(isinstance(held, list) and all(isinstance(item, int) for item in held) for held in (strides, pads, extra, kernel))
    if not plain or attribute(node, "output_shape") is not None or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return [[dims[0], channels, *([None] * count)]]
    sizes: Dims = []
    for axis, dim in enumerate(dims[2:]):
        spread = dimensions.multiply(dim, strides[axis])
        reach = dilations[axis] * (kernel[axis] - 1) + 1 + extra[axis] - pads[axis] - pads[axis + count] - strides[axis]
        sizes.append(dimensions.add(spread, reach) if spread is not None else None)
    return [[dims[0], channels, *sizes]]


def _global_pool(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    return [[*dims[:2], *([1] * (len(dims) - 2))]] if dims is not None else None


def _resize(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    unknown: Dims = [None] * len(dims)
    if attribute(node, "axes") is not None or attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return [unknown]
    sizes = known.items(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3].name else None
    if sizes is not None and len(sizes.items) == len(dims):
        return [list(sizes.items)]
    index = 2 if node.op == "Resize" and known.opset > 10 else 1
    has_scales = len(node.inputs) > index and node.inputs[index].name and is_small_constant(node.inputs[index], 16)
    scales = constant_of(node.inputs[index]) if has_scales else None
    if scales is None or scales.size != len(dims) or attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return [unknown]
    return [[_scaled(dim, scale) for dim, scale in zip(dims, scales.reshape(-1), strict=True)]]


def _scaled(dim: Size, scale: Any) -> Item:
    """floor(dim * scale), for a whole scale: the kernel multiplies floats."""
    return dimensions.multiply(dim, int(scale)) if np.isfinite(scale) and float(scale).is_integer() and scale >= 1 else None


def _constant(known: Known, node: Any) -> list[Dims | None] | None:
    held = attribute(node, "value")
    value = held if held is not None and not isinstance(held, gs.Node.AttributeRef) else constant_node_value(node)
    return [list(value.shape)] if value is not None else None


def _non_zero(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    return [[max(len(dims), 1) if dims is not None else None, None]]


def _recurrent(known: Known, node: Any) -> list[Dims | None] | None:
    dims, hidden = known.dims(node.inputs[0]), attribute(node, "hidden_size")
    if dims is None or len(dims) != 3 or attribute(node, "layout", 0) != 0 or not isinstance(hidden, int):
        return None
    directions = 2 if attribute(node, "direction", "forward") == "bidirectional" else 1
    state: Dims = [directions, dims[1], hidden]
    found: list[Dims | None] = [[dims[0], directions, dims[1], hidden], state, state]
    return found[: len(node.outputs)]


def _attention(known: Known, node: Any) -> list[Dims | None] | None:
    """Opset 23: (B, N, S, H) or (B, S, N*H)."""
    query, value = known.dims(node.inputs[0]), known.dims(node.inputs[2])
    unknown: list[Dims | None] = [None] * (len(node.outputs) - 1)
    if query is None or value is None or len(query) != len(value):
        return None
    if len(query) == 4:
        return [[*query[:3], value[3]], *unknown]
    heads, others = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    if len(query) != 3 or not isinstance(heads, int) or not isinstance(others, int) or others < 1:
        return None
    size = dimensions.divide(value[2], others)
    return [[query[0], query[1], dimensions.multiply(size, heads) if size is not None else None], *unknown]


_SAME: Final = (
    "Relu", "Erf", "Tanh", "Sigmoid", "Sqrt", "Exp", "Log", "Neg", "Abs", "Reciprocal", "Floor", "Ceil", "Round", "Sin", "Cos",
    "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Sign", "Not", "BitwiseNot", "IsNaN", "IsInf",
    "Identity", "Cast", "CastLike", "Softmax", "LogSoftmax", "Hardmax", "Dropout", "Clip", "Trilu", "CumSum", "Gelu", "Elu",
    "Selu", "Celu", "LeakyRelu", "ThresholdedRelu", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Shrink", "Mish", "Swish",
    "PRelu", "GroupNormalization", "InstanceNormalization", "LRN", "LpNormalization", "MeanVarianceNormalization", "Scatter",
    "ScatterElements", "ScatterND", "QuantizeLinear", "DequantizeLinear", "RotaryEmbedding", "RandomNormalLike",
    "RandomUniformLike", "Bernoulli", "EyeLike",
)  # fmt: skip

_BROADCASTING: Final = (
    "Add", "Sub", "Mul", "Div", "Pow", "Mod", "Where", "And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Min", "Max", "Mean", "Sum", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift",
)  # fmt: skip

_REDUCTIONS: Final = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip

COMPUTE: Final[dict[str, Rule]] = {
    **dict.fromkeys(_SAME, same),
    **dict.fromkeys(_BROADCASTING, elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), normalized),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _global_pool),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg_reduce),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "BatchNormalization": first_same,
    "MatMul": matmul,
    "MatMulInteger": matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
    "TopK": _top_k,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Size": _scalar_output,
    "OneHot": _one_hot,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "NonZero": _non_zero,
    "Constant": _constant,
    "Attention": _attention,
}
