"""Builds one attention whose heads may share keys and values, with one thing spelled in many ways. Each field is one knob."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Sharing:
    """softmax(cap(scale Q K') + mask) V over x (B, S, heads x size): q, k and v are inputs of the graph.

    Attributes:
        heads, groups, size, value_size: N, G, H and the head size of the values.
        repeat: how G heads become N: "expand", "tile5" (Tile with five axes), "interleave" (Gather), "concat5" (Concat of one
            value with itself), "grouped" (the queries have the groups instead), "einsum"; or, in another order of heads: "tile",
            "gather-turns".
        cap: of the scores; cap_by: "Div" and "Mul", or "Mul" twice, or "scaled" (the scale inside the cap alone).
        mask: see ``_mask``; fill is what masks.
        guard: Where(IsNaN(p), 0, p).
        length: of the sequence, where it is fixed.
    """

    heads: int = 4
    groups: int = 2
    size: int = 8
    value_size: int = 0
    repeat: str = "expand"
    cap: float = 0.0
    cap_by: str = "Div"
    mask: str = "none"
    fill: float = LOWEST
    guard: bool = False
    opset: int = 17
    cross: bool = False
    length: int | str = "S"
    scale: float = 0.3

    def model(self) -> ModelProto:
        return _Writer(self).model()

    def feeds(self, batch: int = 2, length: int = 5, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        rng = np.random.default_rng(seed)
        keys = length + 2 if self.cross else length
        widths = {"q": (length, self.heads * self.size), "k": (keys, self.groups * self.size)}
        widths["v"] = (keys, self.groups * (self.value_size or self.size))
        made = {name: rng.standard_normal((batch, *shape)).astype(np.float32) for name, shape in widths.items()}
        kept = (np.arange(keys) < np.maximum(keys - np.arange(batch)[:, None], 0)).astype(np.int64)
        kept[-1] = kept[-1] if batch == 1 else 0  # the last sequence keeps nothing
        given = {
            "pad": kept,
            "kept": kept.astype(bool),
            "bias": rng.standard_normal((1, self.heads, length, keys)).astype(np.float32),
        }
        return made | {name: given[name] for name in _Writer(self).used if name in given}


class _Writer:
    def __init__(self, knobs: Sharing) -> None:
        self.knobs = knobs
        self.nodes: list[Any] = []
        self.constants: list[TensorProto] = []
        self.used: list[str] = []
        self.result = self._attention()

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], f"/{name}", **attributes))
        return name

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def take(self, name: str) -> str:
        self.used.append(name)
        return name

    def model(self) -> ModelProto:
        knobs = self.knobs
        keys: int | str = "T" if knobs.cross else knobs.length
        shapes = {
            "q": ["B", knobs.length, knobs.heads * knobs.size],
            "k": ["B", keys, knobs.groups * knobs.size],
            "v": ["B", keys, knobs.groups * (knobs.value_size or knobs.size)],
            "pad": ["B", keys],
            "kept": ["B", keys],
            "bias": [1, knobs.heads, knobs.length, keys],
        }
        kinds = {"pad": TensorProto.INT64, "kept": TensorProto.BOOL}
        inputs = [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shapes[name])
            for name in dict.fromkeys(("q", "k", "v", *self.used))
        ]
        output = helper.make_tensor_value_info(self.result, TensorProto.FLOAT, [None] * 3)
        graph = helper.make_graph(self.nodes, "sharing", inputs, [output], self.constants)
        imports = [helper.make_opsetid("", knobs.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=8 if knobs.opset < 20 else 11)

    def _attention(self) -> str:
        knobs = self.knobs
        width = knobs.value_size or knobs.size
        times = knobs.heads // knobs.groups
        if knobs.repeat in ("grouped", "einsum"):
            query = self("Reshape", "q", self.ints(0, 0, knobs.groups, times, knobs.size))
            key, value = (self._split(name, knobs.groups, size) for name, size in (("k", knobs.size), ("v", width)))
            return self._merged(*self._grouped(query, key, value), width)
        query = self("Transpose", self._split("q", knobs.heads, knobs.size), perm=[0, 2, 1, 3])
        key, value = (
            self._repeated(self("Transpose", self._split(name, knobs.groups, size), perm=[0, 2, 1, 3]), size)
            for name, size in (("k", knobs.size), ("v", width))
        )
        probabilities = self._probabilities(self("MatMul", query, self("Transpose", key, perm=[0, 1, 3, 2])))
        context = self("Transpose", self("MatMul", probabilities, value), perm=[0, 2, 1, 3])
        return self("Reshape", context, self.ints(0, 0, knobs.heads * width))

    def _split(self, name: str, heads: int, size: int) -> str:
        return self("Reshape", name, self.ints(0, 0, heads, size))

    def _grouped(self, query: str, key: str, value: str) -> tuple[str, bool]:
        if self.knobs.repeat == "einsum":
            scores = self("Einsum", query, key, equation="bsgrh,btgh->bgrst")
            return self("Einsum", self._probabilities(scores), value, equation="bgrst,btgh->bsgrh"), True
        query = self("Transpose", query, perm=[0, 2, 3, 1, 4])
        key = self("Unsqueeze", self("Transpose", key, perm=[0, 2, 3, 1]), self.ints(2))
        value = self("Unsqueeze", self("Transpose", value, perm=[0, 2, 1, 3]), self.ints(2))
        return self("MatMul", self._probabilities(self("MatMul", query, key)), value), False

    def _merged(self, context: str, rows_first: bool, width: int) -> str:
        if not rows_first:
            context = self("Transpose", context, perm=[0, 3, 1, 2, 4])
        return self("Reshape", context, self.ints(0, 0, self.knobs.heads * width))

    def _repeated(self, value: str, size: int) -> str:
        knobs = self.knobs
        groups, times = knobs.groups, knobs.heads // knobs.groups
        shape = self.ints(0, knobs.heads, -1, size)
        if knobs.repeat == "tile":
            return self("Tile", value, self.ints(1, times, 1, 1))
        if knobs.repeat in ("interleave", "gather-turns"):
            index = np.repeat(np.arange(groups), times) if knobs.repeat == "interleave" else np.tile(np.arange(groups), times)
            return self("Gather", value, self.const(index, np.int64), axis=1)
        five = self("Unsqueeze", value, self.ints(2))
        if knobs.repeat == "tile5":
            five = self("Tile", five, self.ints(1, 1, times, 1, 1))
        elif knobs.repeat == "concat5":
            five = self("Concat", *[five] * times, axis=2)
        else:
            five = self("Expand", five, self.ints(1, 1, times, 1, 1))
        return self("Reshape", five, shape)

    def _probabilities(self, scores: str) -> str:
        knobs = self.knobs
        inner = knobs.scale / knobs.cap if knobs.cap and knobs.cap_by == "scaled" else knobs.scale
        scores = self("Mul", scores, self.const(inner))
        if knobs.cap:
            if knobs.cap_by == "Div":
                scores = self("Div", scores, self.const(knobs.cap))
            elif knobs.cap_by == "Mul":
                scores = self("Mul", scores, self.const(1 / knobs.cap))
            scores = self("Mul", self("Tanh", scores), self.const(knobs.cap))
        scores = self._masked(scores)
        probabilities = self("Softmax", scores, axis=-1)
        if knobs.guard:
            probabilities = self("Where", self("IsNaN", probabilities), self.const(0.0), probabilities)
        return probabilities

    def _masked(self, scores: str) -> str:
        """Adds what ``mask`` names, several joined by ","; "select-..." selects instead."""
        for name in self.knobs.mask.split(","):
            if name.startswith("select-"):
                keep = self._kept(name.removeprefix("select-"), scores)
                scores = self("Where", keep, scores, self.const(self.knobs.fill))
            elif name == "bias":
                scores = self("Add", scores, self.take("bias"))
            elif name == "additive":
                kept = self("Cast", self("Unsqueeze", self.take("pad"), self.ints(1, 2)), to=TensorProto.FLOAT)
                scores = self("Add", scores, self("Mul", self("Sub", self.const(1.0), kept), self.const(self.knobs.fill)))
            elif name != "none":
                chosen = self("Where", self._kept(name, scores), self.const(0.0), self.const(self.knobs.fill))
                scores = self("Add", scores, chosen)
        return scores

    def _kept(self, name: str, scores: str) -> str:
        """Which keys a query sees."""
        if name == "kept":
            return self("Unsqueeze", self.take("kept"), self.ints(1, 2))
        if name == "and":
            return self("And", self._kept("k<=q", scores), self._kept("kept", scores))
        row, column = self._range(scores, -2, 1), self._range(scores, -1, 0)
        if name.startswith("window"):
            near = self("Less", self("Sub", row, column), self.const(int(name[6:]), np.int64))
            return self("And", self("LessOrEqual", column, row), near)
        if name == "trilu":
            plane = self("ConstantOfShape", self("Slice", self("Shape", scores), self.ints(-2), self.ints(2**31), self.ints(0)))
            ones = self("Equal", plane, self.const(0.0))
            lower = self("Trilu", self("Cast", ones, to=TensorProto.FLOAT), self.const(0, np.int64), upper=0)
            return self("Cast", lower, to=TensorProto.BOOL)
        if name == "buffer":
            buffer = self.const(np.tri(16)[None, None], np.bool_)
            size = self("Slice", self("Shape", scores), self.ints(-2), self.ints(2**31), self.ints(0))
            return self("Slice", buffer, self.ints(0, 0), size, self.ints(2, 3))
        left, op, right = name.partition(next(op for op in ("<=", ">=", "<", ">", "==") if op in name))
        ops = {"<=": "LessOrEqual", ">=": "GreaterOrEqual", "<": "Less", ">": "Greater", "==": "Equal"}
        sides = []
        for side in (left, right):
            letter, _, more = side.strip("!").partition("+")
            held = column if letter == "k" else row
            sides.append(self("Add", held, self.const(int(more), np.int64)) if more else held)
        made = self(ops[op], *sides)
        return self("Not", made) if name.startswith("!") else made

    def _range(self, scores: str, axis: int, place: int) -> str:
        length = self("Squeeze", self("Gather", self("Shape", scores), self.ints(axis)), self.ints(0))
        positions = self("Range", self.const(0, np.int64), length, self.const(1, np.int64))
        return self("Unsqueeze", positions, self.ints(place))
