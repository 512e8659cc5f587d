"""Writes one attention in the ways in which exporters write it, and in ways that are something else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from attention_graph import BOOL, FLOAT, INT64, Graph
from onnx import ModelProto, TensorProto

WIDTH = 6


@dataclass
class Spelling:
    """softmax(scale * Q K^T + masks) V over x (B, S, 6), keys and values from it or from ``memory`` (B, T, 6).

    Attributes:
        layout: "4d" (B, N, S, H), "3d" (B * N, S, H), or "einsum", which leaves (B, S, N, H).
        split: the shape that makes heads: "zeros", "heads" (-1 for their number), "sequence" (-1 for the length), "computed".
        source: of Q, K and V: "separate" projections, a "packed" one, or "inputs".
        scale_at: "scores", "q", "k", "both", "nowhere"; scale_by: "Mul", "Div" or "Sqrt" (of a constant, to divide by).
        masks: names of methods of ``Masks``, in order; fill: what a masked score gets.
        change: what makes it something else than attention, or not provably one; "" for none.
    """

    opset: int = 17
    heads: int = 2
    size: int = 4
    cross: bool = False
    layout: str = "4d"
    split: str = "zeros"
    source: str = "separate"
    biases: str = "qkv"
    key_steps: int = 1
    labels: str = "bsthn"
    scale_at: str = "scores"
    scale_by: str = "Mul"
    masks: tuple[str, ...] = ()
    fill: float = -1e4
    swap: bool = False
    guard: bool = False
    softmax: str = "plain"
    result: str = "merged"
    change: str = ""
    graph: Graph = field(init=False)

    def model(self) -> ModelProto:
        g = self.graph = Graph(self.opset)
        q, k, v = (self._head(row, role) for row, role in zip(self._rows(), "qkv", strict=True))
        q, k = (self._scaled(value, role) for value, role in ((q, "q"), (k, "k")))
        scores = self._scaled(self._product(q, k), "scores")
        if self.change == "temperature":
            scores = g("Div", scores, g.input("temperature"))
        elif self.change == "negative scale":
            scores = g("Mul", scores, g.array(-1.0))
        if self.change == "scores are an output":
            g.output(scores, 3 if self.layout == "3d" else 4)
        elif self.change == "scores are used":
            g.output(g("ReduceMean", scores, keepdims=0), 0)
        scores = self._masked(scores)
        self._attended(scores, v)
        return g.model()

    def _rows(self) -> list[str]:
        """Queries, keys and values as (batch, positions, heads * size)."""
        g, width = self.graph, self.heads * self.size
        keys = "T" if self.cross else "S"
        if self.source == "inputs":
            return [g.input(role, "B", "S" if role == "q" else keys, width) for role in "qkv"]
        x = g.input("x", "B", "S", WIDTH)
        memory = g.input("memory", "B", keys, WIDTH) if self.cross else x
        if self.source == "packed" and not self.cross:
            product = g("MatMul", x, g.weight(WIDTH, 3 * width))
            return g.split(g("Add", product, g.weight(3 * width)) if self.biases else product, 2, width, width, width)
        rows = []
        for role, source in zip("qkv", (x, memory, memory), strict=True):
            product = g("MatMul", source, g.weight(WIDTH, width))
            rows.append(self._both("Add", product, g.weight(width)) if role in self.biases else product)
        return rows

    def _both(self, op: str, left: str, right: str) -> str:
        return self.graph(op, *((right, left) if self.swap else (left, right)))

    def _head(self, rows: str, role: str) -> str:
        """(batch, heads, positions, size), its batch and heads one in "3d", positions before heads in "einsum"."""
        g = self.graph
        if self.change == "heads are mixed" and role == "v":
            straight = g("Concat", g.dim(rows, 0), g.ints(self.heads), g.dim(rows, 1), g.ints(self.size), axis=0)
            rows = g("Reshape", rows, straight)
            return g("Transpose", rows, perm=[0, 2, 1, 3]) if self.layout == "einsum" else self._folded(rows)
        shapes = {
            "zeros": [0, 0, self.heads, self.size],
            "heads": [0, 0, -1, self.size],
            "sequence": [0, -1, self.heads, self.size],
        }
        if self.split == "computed":
            shape = g("Concat", g.dim(rows, 0), g.dim(rows, 1), g.ints(self.heads, self.size), axis=0)
        else:
            shape = g.ints(*shapes[self.split])
        split = g("Reshape", rows, shape)
        if self.layout == "einsum":
            return split
        if role == "k" and self.key_steps == 1 and self.layout == "4d":
            return g("Transpose", split, perm=[0, 2, 3, 1])
        return self._folded(g("Transpose", split, perm=[0, 2, 1, 3]))

    def _folded(self, x: str) -> str:
        g = self.graph
        if self.layout != "3d":
            return x
        return g("Reshape", x, g("Concat", g("Mul", g.dim(x, 0), g.ints(self.heads)), g.dim(x, 2), g.ints(self.size), axis=0))

    def _unfolded(self, x: str, like: str) -> str:
        g = self.graph
        return g("Reshape", x, g("Concat", g.dim(like, 0), g.ints(self.heads), g.dim(x, 1), g.dim(x, 2), axis=0))

    def _scaled(self, x: str, at: str) -> str:
        g = self.graph
        if self.scale_at != at and not (self.scale_at == "both" and at in "qk"):
            return x
        factor = 1 / self.size if self.scale_at != "both" else self.size**-0.5
        if self.scale_by == "Mul":
            return self._both("Mul", x, g.array(factor))
        return g("Div", x, g.array(1 / factor) if self.scale_by == "Div" else g("Sqrt", g.array(factor**-2)))

    def _product(self, q: str, k: str) -> str:
        g = self.graph
        b, s, t, h, n = self.labels
        if self.layout == "einsum":
            equation = f"{b}{t}{n}{h},{b}{s}{n}{h}->{b}{n}{s}{t}" if self.swap else f"{b}{s}{n}{h},{b}{t}{n}{h}->{b}{n}{s}{t}"
            return g("Einsum", *((k, q) if self.swap else (q, k)), equation=equation)
        if self.layout == "3d":
            return g("MatMul", q, g("Transpose", k, perm=[0, 2, 1]))
        return g("MatMul", q, k if self.key_steps == 1 else g("Transpose", k, perm=[0, 1, 3, 2]))

    def _masked(self, scores: str) -> str:
        g = self.graph
        if not self.masks and self.change != "weak selection":
            return scores
        like = next(value.name for value in g.inputs)
        folded = scores
        scores = self._unfolded(scores, like) if self.layout == "3d" else scores
        masks = Masks(self, g)
        for name in self.masks:
            scores = getattr(masks, name)(scores)
        if self.change == "weak selection":
            scores = g("Where", masks.kept(), scores, g.array(-1e4))
        return g("Reshape", scores, g("Shape", folded)) if self.layout == "3d" else scores

    def _attended(self, scores: str, v: str) -> None:
        g = self.graph
        b, s, t, h, n = self.labels
        if self.softmax == "double":
            scores = g("Cast", scores, to=TensorProto.DOUBLE)
        p = g("Softmax", scores, axis=1 if self.change == "softmax axis" else -1)
        p = g("Cast", p, to=FLOAT) if self.softmax == "double" else p
        if self.guard:
            p = g("Where", g("IsNaN", p), g.array(0.0), p)
        if self.change == "probabilities are an output":
            g.output(p, 3 if self.layout == "3d" else 4)
        elif self.change == "probabilities are used":
            g.output(g("ReduceMean", p, keepdims=0), 0)
        elif self.change == "head mask":
            p = g("Mul", p, g.array(0.5 if self.layout == "3d" else np.linspace(0, 1, self.heads).reshape(-1, 1, 1)))
        if self.layout == "einsum":
            context = g("Einsum", p, v, equation=f"{b}{n}{s}{t},{b}{t}{n}{h}->{b}{s}{n}{h}")
        else:
            context = g("MatMul", p, v)
            context = self._unfolded(context, g.inputs[0].name) if self.layout == "3d" else context
        if self.result == "4d":
            g.output(context, 4)
            return
        rows = context if self.layout == "einsum" else g("Transpose", context, perm=[0, 2, 1, 3])
        g.output(g("Reshape", rows, g.ints(0, 0, self.heads * self.size)), 3)

    def feeds(self, batch: int, length: int, padding: str = "right") -> dict[str, Any]:
        """Inputs. ``padding``: "right", "left", "row" (the last row wholly masked)."""
        rng, keys = np.random.default_rng(batch * 10 + length), 4 if self.cross else length
        mask = np.ones((batch, keys), np.int64)
        mask[::2, : keys // 2] = padding != "left"
        mask[::2, keys - keys // 2 :] = padding != "right"
        mask[-1:] *= padding != "row"
        sizes, feeds = {"B": batch, "S": length, "T": keys}, {}
        for value in self.graph.inputs:
            shape = [sizes.get(dim.dim_param, dim.dim_value) for dim in value.type.tensor_type.shape.dim]
            feeds[value.name] = np.asarray(rng.normal(size=shape), np.float32)
        feeds["temperature"], feeds["mask"] = np.array(1.5, np.float32), mask
        feeds["kept"] = np.broadcast_to(mask[:, None, None].astype(bool), (batch, 1, length, keys)).copy()
        return {value.name: feeds[value.name] for value in self.graph.inputs}


@dataclass
class Masks:
    """What is done to scores (B, N, S, T); each method is one mask or bias."""

    spelling: Spelling
    g: Graph

    def input(self, name: str, *dims: int | str, elem_type: int = FLOAT) -> str:
        known = {value.name for value in self.g.inputs}
        return name if name in known else self.g.input(name, *dims, elem_type=elem_type)

    @property
    def keys(self) -> str:
        return "T" if self.spelling.cross else "S"

    def wide(self) -> str:
        return self.g.unsqueeze(self.input("mask", "B", self.keys, elem_type=INT64), 1, 2)

    def kept(self) -> str:
        return self.g("Cast", self.wide(), to=BOOL)

    def fill(self) -> str:
        return self.g.array(self.spelling.fill)

    def chosen(self, allowed: str, scores: str) -> str:
        """-10000 is added, as it may be within the reach of scores; the others are, or are selected."""
        g = self.g
        if self.spelling.fill == -1e4 or self.spelling.swap:
            return g("Add", scores, g("Where", allowed, g.array(0.0), self.fill()))
        return g("Where", allowed, scores, self.fill())

    def additive(self, scores: str) -> str:
        g, fill = self.g, max(self.spelling.fill, float(np.finfo(np.float32).min))
        numbers = g("Cast", self.wide(), to=FLOAT)
        return self.spelling._both("Add", scores, g("Mul", g("Sub", g.array(1.0), numbers), g.array(fill)))

    def padding(self, scores: str) -> str:
        return self.chosen(self.kept(), scores)

    def padding_not(self, scores: str) -> str:
        g = self.g
        masked = g("Equal", self.wide(), g.array(0, np.int64))
        if self.spelling.fill == -1e4:
            return g("Add", scores, g("Where", masked, self.fill(), g.array(0.0)))
        return g("Where", masked, self.fill(), scores)

    def boolean(self, scores: str) -> str:
        return self.chosen(self.input("kept", "B", 1, "S", self.keys, elem_type=BOOL), scores)

    def relative(self, scores: str) -> str:
        return self.spelling._both("Add", scores, self.input("relative", 1, self.spelling.heads, "S", self.keys))

    def distance(self, scores: str) -> str:
        """A slope for each head, times the key's position."""
        g = self.g
        position = g("Cast", self.positions(3, 0, 1, 2), to=FLOAT)
        return g("Add", scores, g("Mul", position, g.array(-(0.5 ** np.arange(self.spelling.heads).reshape(-1, 1, 1)))))

    def positions(self, axis: int, *others: int) -> str:
        g = self.g
        source = next(value.name for value in g.inputs if value.name in ("q", "x"))
        if axis == 3 and self.spelling.cross:
            source = next(value.name for value in g.inputs if value.name in ("k", "memory"))
        length = g.squeeze(g.dim(source, 1), 0)
        return g.unsqueeze(g("Range", g.array(0, np.int64), length, g.array(1, np.int64)), *others)

    def causal_range(self, scores: str) -> str:
        rows, columns = self.positions(2, 0, 1, 3), self.positions(3, 0, 1, 2)
        if self.spelling.swap:
            return self.chosen(self.g("Not", self.g("Less", rows, columns)), scores)
        return self.chosen(self.g("Not", self.g("Greater", columns, rows)), scores)

    def window(self, scores: str) -> str:
        g = self.g
        distance = g("Abs", g("Sub", self.positions(2, 0, 1, 3), self.positions(3, 0, 1, 2)))
        return self.chosen(g("Less", distance, g.array(2, np.int64)), scores)

    def causal_constant(self, scores: str) -> str:
        g = self.g
        triangle = g.array(np.tril(np.ones((1, 1, 8, 8), bool)), bool)
        ends = g("Concat", g.dim(scores, 2), g.dim(scores, 3), axis=0)
        return self.chosen(g("Slice", triangle, g.ints(0, 0), ends, g.ints(2, 3)), scores)

    def causal_triangle(self, scores: str) -> str:
        g = self.g
        ones = g("Expand", g.array(1.0), g("Concat", g.dim(scores, 2), g.dim(scores, 3), axis=0))
        return self.chosen(g("Cast", g("Trilu", ones, upper=0), to=BOOL), scores)
