"""Writes rotary position embedding in the ways in which exporters write it."""

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper

INT64 = TensorProto.INT64


@dataclass
class Rotary:
    """One spelling. ``size`` elements in a head, of which the first ``rotated`` are rotated; ``heads`` heads."""

    pairing: str = "half"  # half, neighbours
    form: str = "rotate"  # rotate, split
    cut: str = "Slice"  # Slice, Split, Gather, Reshape
    minus: str = "Neg"  # Neg, Sub, factor, signs
    caches: str = "computed"  # computed, table, gathered, per batch, constant, half table
    scaling: float = 1.0
    swap: int = 0
    size: int = 8
    rotated: int = 8
    heads: int = 3
    layout: str = "heads first"  # heads first, positions first
    opset: int = 17
    elem_type: int = TensorProto.FLOAT
    x_dims: tuple | None = None
    change: str = ""
    extra_outputs: tuple = ()

    def __post_init__(self):
        self.nodes, self.initializers, self.inputs, self._swaps = [], [], [], self.swap

    def __call__(self, op, *inputs, **attributes):
        count = attributes.pop("outputs", 1)
        outputs = [f"{op}_{len(self.nodes)}_{index}" for index in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, f"n{len(self.nodes)}", **attributes))
        return outputs[0] if count == 1 else outputs

    def constant(self, values, dtype=np.int64):
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(values, dtype, order="C"), name))
        return name

    @property
    def dtype(self):
        return helper.tensor_dtype_to_np_dtype(self.elem_type)

    def real(self, values):
        return self.constant(values, self.dtype)

    def commuted(self, op, left, right):
        """The operands in the order that the next bit of ``swap`` says."""
        flip, self._swaps = self._swaps & 1, self._swaps >> 1
        return self(op, *((right, left) if flip else (left, right)))

    def part(self, x, start, end, step=1):
        return self("Slice", x, *(self.constant([item]) for item in (start, end, -1, step)))

    def unsqueezed(self, x, *axes):
        return self("Unsqueeze", x, self.constant(axes)) if self.opset >= 13 else self("Unsqueeze", x, axes=axes)

    def stacked(self, first, second, shape):
        """Two values interleaved along the last axis."""
        pair = [self.unsqueezed(item, len(shape)) for item in (first, second)]
        return self("Reshape", self("Concat", *pair, axis=-1), self.constant([*shape[:-1], 2 * shape[-1]]))

    def pair_of(self, x, shape):
        """The first and the second elements of the pairs."""
        half = self.rotated // 2
        if self.pairing == "neighbours":
            if self.cut == "Reshape":
                pairs = self("Reshape", x, self.constant([*shape[:-1], half, 2]))
                return [self("Gather", pairs, self.constant(index), axis=4) for index in (0, 1)]
            if self.cut == "Gather":
                return [self("Gather", x, self.constant(range(start, self.rotated, 2)), axis=3) for start in (0, 1)]
            return [self.part(x, start, 2**62, 2) for start in (0, 1)]
        if self.cut == "Split":
            named = {"num_outputs": 2} if self.opset >= 18 else {}
            return self("Split", x, axis=3, outputs=2, **named)
        if self.cut == "Gather":
            return [self("Gather", x, self.constant(range(start, start + half)), axis=-1) for start in (0, half)]
        if self.cut == "Reshape":
            halves = self("Reshape", x, self.constant([*shape[:-1], 2, half]))
            parts = [self.constant(index) for index in ([0], [1])]
            return [self("Squeeze", self("Gather", halves, part, axis=3), self.constant([3])) for part in parts]
        return [self.part(x, 0, half), self.part(x, half, 2**62)]

    def joined(self, first, second, shape):
        if self.pairing == "neighbours":
            return self.stacked(first, second, (*shape[:-1], self.rotated // 2))
        return self("Concat", first, second, axis=-1)

    def doubled(self, half, rank):
        """A cache for each element from one for each pair."""
        if self.form == "split" or self.change == "half caches":
            return half
        if self.change == "halves differ":
            return self("Concat", half, self("Abs", half), axis=-1)
        if self.pairing == "half":
            return self("Concat", half, half, axis=-1)
        last = self("Concat", *[self.unsqueezed(half, rank)] * 2, axis=-1)
        return self("Reshape", last, self.constant([0] * (rank - 1) + [self.rotated]))

    def angles(self):
        """cos and sin, (batch or 1, positions, elements)."""
        half = self.rotated // 2
        frequencies = np.linspace(1, 0.01, half)
        if self.caches == "per batch":
            self.inputs.append(helper.make_tensor_value_info("ids", INT64, ["B", "S"]))
            positions = self.unsqueezed("ids", 2)
        else:
            length = self("Gather", self("Shape", "x"), self.constant(self.axis), axis=0)
            positions = self.unsqueezed(self("Range", self.constant(0), length, self.constant(1)), 0, 2)
            if self.change == "other length":
                positions = self("Concat", positions, positions, axis=1)
        angle = self("Mul", self("Cast", positions, to=self.elem_type), self.real(frequencies[None, None]))
        if self.change != "cosines of pairs differ":
            angle = self.doubled(angle, 3)
        found = [self(op, angle) for op in ("Cos", "Sin")]
        return [self("Mul", item, self.real(self.scaling)) for item in found] if self.scaling != 1 else found

    def table(self, rows=16):
        half = self.rotated // 2
        angle = np.arange(rows)[:, None] * np.linspace(1, 0.01, half)
        if self.form != "split":
            angle = np.concatenate([angle, angle], -1) if self.pairing == "half" else np.repeat(angle, 2, -1)
        if self.change == "halves differ":
            angle[3, 0] += 1
        return [self.real(self.scaling * function(angle)) for function in (np.cos, np.sin)]

    @property
    def axis(self):
        return 2 if self.layout == "heads first" else 1

    def cos_and_sin(self):
        heads_axis = 3 - self.axis
        if self.caches in ("computed", "per batch"):
            return [self.unsqueezed(item, heads_axis) for item in self.angles()]
        if self.caches == "gathered":
            self.inputs.append(helper.make_tensor_value_info("ids", INT64, ["B", "S"]))
            return [self.unsqueezed(self("Gather", item, "ids", axis=0), heads_axis) for item in self.table()]
        tables = self.table(rows=5)
        return tables if self.layout == "heads first" else [self.unsqueezed(item, 1) for item in tables]

    def result(self):
        dims = self.x_dims or (
            ("B", self.heads, "S", self.size) if self.layout == "heads first" else ("B", "S", self.heads, self.size)
        )
        if self.caches == "constant" and self.x_dims is None:
            dims = tuple(5 if dim == "S" else dim for dim in dims)
        self.inputs.insert(0, helper.make_tensor_value_info("x", self.elem_type, dims))
        self.dims = dims
        cos, sin = self.cos_and_sin()
        if self.change == "swapped caches":
            cos, sin = sin, cos
        x, shape = "x", [0 if isinstance(dim, str) else dim for dim in (*dims[:3], self.rotated)]
        if self.rotated < self.size:
            x, rest = self.part("x", 0, self.rotated), self.part("x", self.rotated, 2**62)
        first, second = self.pair_of(x, shape)
        turned = (self._split if self.form == "split" else self._rotate)(x, first, second, cos, sin, shape)
        return self("Concat", turned, rest, axis=-1) if self.rotated < self.size else turned

    def _split(self, x, first, second, cos, sin, shape):
        upper = self(
            "Add" if self.change == "sign" else "Sub", self.commuted("Mul", first, cos), self.commuted("Mul", second, sin)
        )
        lower = self.commuted("Add", self.commuted("Mul", second, cos), self.commuted("Mul", first, sin))
        return self.joined(upper, lower, shape)

    def _rotate(self, x, first, second, cos, sin, shape):
        straight = self.commuted("Mul", x, cos)
        if self.change == "sign":
            first, second = second, first
            minus = first if self.minus == "Sub" else second
            parts = (self("Neg", minus), second) if self.minus == "Sub" else (first, self("Neg", minus))
            crossed = self.joined(*parts, shape)
        elif self.change == "no exchange":
            crossed = self.joined(self("Neg", first), second, shape)
        elif self.minus == "Sub":
            crossed = self.joined(second, self("Neg", first), shape)
        elif self.minus == "signs":
            signs = [-1, 1] * (self.rotated // 2) if self.pairing == "neighbours" else np.repeat([-1, 1], self.rotated // 2)
            crossed = self.commuted("Mul", self.joined(second, first, shape), self.real(signs))
        else:
            minus = self("Neg", second) if self.minus == "Neg" else self.commuted("Mul", second, self.real(-1))
            crossed = self.joined(minus, first, shape)
        if self.change == "inner output":
            self.extra_outputs = (straight,)
        other = self.commuted("Mul", crossed, sin)
        return self("Sub", straight, other) if self.minus == "Sub" else self.commuted("Add", straight, other)

    def model(self):
        result = self.result()
        self.nodes.append(helper.make_node("Identity", [result], ["y"]))
        outputs = [helper.make_tensor_value_info(name, self.elem_type, [None] * 4) for name in ("y", *self.extra_outputs)]
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.initializers)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8 if self.opset < 20 else 10)

    def feeds(self, batch, length, seed=0):
        rng = np.random.default_rng(seed)
        sizes = {"B": batch, "S": length}
        feeds = {"x": rng.standard_normal([sizes.get(dim, dim) for dim in self.dims]).astype(self.dtype)}
        if any(value.name == "ids" for value in self.inputs):
            feeds["ids"] = rng.integers(0, 16, (batch, length))
        return feeds
