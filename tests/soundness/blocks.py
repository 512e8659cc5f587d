"""Builds transformer blocks in which one thing is unusual, or wrong to fuse. Each field of ``Block`` is one knob."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

D, HEADS, SIZE = 8, 2, 4
"""Hidden size, heads, and their size. The number of values in a score's sum is SIZE: the usual scale is 1/2."""

LOWEST = float(np.finfo(np.float32).min)


class Graph:
    """Writes nodes one by one; inputs, outputs and constants are declared when they are first used."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.inputs: dict[str, tuple[int, tuple[int | str, ...]]] = {}

    def __call__(self, op: str, *inputs: str, out: str = "", domain: str = "", **attributes: Any) -> str:
        output = out or f"{op}_{len(self.nodes)}"
        outputs = attributes.pop("outputs", [output])
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=f"/{output}", domain=domain, **attributes))
        return str(outputs[0])

    def const(self, value: Any, dtype: Any = np.float32, node: bool = False) -> str:
        name = f"c{len(self.nodes)}_{len(self.initializers)}"
        tensor = numpy_helper.from_array(np.asarray(value, dtype), name)
        if node:
            return self("Constant", out=name, value=tensor)
        self.initializers.append(tensor)
        return name

    def weight(self, name: str, *shape: int, spread: float = 0.4) -> str:
        seed = sum(map(ord, name))
        values = np.random.default_rng(seed).normal(0, spread, shape).astype(np.float32)
        self.initializers.append(numpy_helper.from_array(values, name))
        return name

    def input(self, name: str, *shape: int | str, elem_type: int = TensorProto.FLOAT) -> str:
        self.inputs[name] = (elem_type, shape)
        return name

    def unsqueeze(self, x: str, *axes: int) -> str:
        if self.opset < 13:
            return self("Unsqueeze", x, axes=list(axes))
        return self("Unsqueeze", x, self.const(axes, np.int64))

    def size(self, x: str, axis: int) -> str:
        """One dimension of a value, as a vector of one number."""
        return self("Gather", self("Shape", x), self.const([axis], np.int64), axis=0)

    def model(self, outputs: dict[str, tuple[int, int]]) -> ModelProto:
        """``outputs``: (element type, rank) by name."""
        graph = helper.make_graph(
            self.nodes,
            "block",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in self.inputs.items()],
            [helper.make_tensor_value_info(name, kind, [None] * rank) for name, (kind, rank) in outputs.items()],
            self.initializers,
        )
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=7 if self.opset < 20 else 10)


@dataclass(frozen=True)
class Block:
    """Attention, output projection, residual and LayerNorm, over x (B, S, 8); keys from ``memory`` (B, T, 8) with ``cross``.

    Attributes:
        scale: factor of the scores, None for none.
        scale_op: "Div" (by its reciprocal), "Mul", or "Sqrt" (divides by the root of a constant).
        scale_at: "scores", "query", "key", or "both" (the root of it at query and key, as SDPA is exported).
        scale_from: "initializer", "constant" (a node), "shape" (1/sqrt of the head size, computed), "input" (`temperature`),
            or "heads" (one number for each head).
        softmax_axis: None writes no attribute.
        mask: see ``Masks``; ``fill`` is what is added or selected where a key is masked.
        causal: see ``Masks``; ``causal_op`` is how it is applied: "add", "select" (Where), or "blend" (s * m + fill * (1 - m), as
            GPT-1 and GPT-2 wrote it), with ``causal_fill``, by default ``fill``.
        guard: Where(IsNaN(p), 0, p) after the softmax.
        head_mask: a factor on the probabilities, by head.
        split: how a (B, S, 8) becomes heads: "zeros" [0, 0, 2, 4], "heads" [0, 0, -1, 4], "sequence" [0, -1, 2, 4], "shape"
            (computed), or, wrong: "unsplit" (straight to (B, N, S, H)) and "interleaved" (head size before heads).
        key_layout: "once" (one Transpose), "twice" (the key's own, then the last two axes), or, wrong: "unsplit" (straight to
            (B, N, H, S)).
        merge: "transpose", or wrong: "straight" (a Reshape alone).
        heads_first: (N, B, S, H) instead of (B, N, S, H).
        biases: which of q, k, v have one.
        qkv: "separate", "split", "slice" (one packed MatMul).
        norm: "post", "post-plain" (LayerNormalization without bias and epsilon), "pre".
        outputs: inner values that are outputs as well: "scores", "masked", "probabilities", "context", "query", "key", "value".
        unknown: where an op is that inference cannot see through: "before" the whole block, or in the "residual" alone.
    """

    opset: int = 17
    scale: float | None = 0.5
    scale_op: str = "Div"
    scale_at: str = "scores"
    scale_from: str = "initializer"
    softmax_axis: int | None = -1
    mask: str = "none"
    fill: float = -1e4
    causal: str = "none"
    causal_op: str = "add"
    causal_fill: float | None = None
    guard: bool = False
    head_mask: tuple[float, float] | None = None
    split: str = "zeros"
    key_layout: str = "once"
    merge: str = "transpose"
    heads_first: bool = False
    biases: str = "qkv"
    qkv: str = "separate"
    cross: bool = False
    norm: str = "post"
    outputs: tuple[str, ...] = ()
    unknown: str = ""

    @cached_property
    def _written(self) -> tuple[ModelProto, dict[str, str]]:
        writer = _Writer(self)
        return writer.write(), writer.named

    @property
    def model(self) -> ModelProto:
        return self._written[0]

    def value(self, name: str) -> str:
        """The inner value's name in the model, for a name that ``outputs`` may have."""
        return self._written[1][name]

    def feeds(self, batch: int, sequence: int, padding: str = "right") -> dict[str, Any]:
        """Inputs: ``padding`` is "right", "left", "row" (the last row is wholly masked) or "holes"."""
        rng = np.random.default_rng(batch * 100 + sequence)
        keys = 4 if self.cross else sequence
        mask = np.ones((batch, keys), np.int64)
        padded = slice(0, batch, 2)  # also of a batch of one
        if padding == "left":
            mask[padded, : keys // 2] = 0
        elif padding == "right":
            mask[padded, keys - keys // 2 :] = 0
        elif padding == "holes":
            mask[padded, 1::2] = 0
        else:
            mask[-1] = 0
        given = {
            "x": rng.normal(size=(batch, sequence, D)).astype(np.float32),
            "memory": rng.normal(size=(batch, keys, D)).astype(np.float32),
            "mask": mask,
            "bias": rng.normal(size=(batch, HEADS, sequence, keys)).astype(np.float32),
            "additive": np.where(mask[:, None, None] == 0, self.fill, 0).astype(np.float32),
            "temperature": np.asarray(1.7, np.float32),
        }
        return {value.name: given[value.name] for value in self.model.graph.input}


@dataclass
class _Writer:
    block: Block
    named: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = Graph(self.block.opset)

    def write(self) -> ModelProto:
        block, graph = self.block, self.graph
        x = graph.input("x", "batch", "sequence", D)
        if block.unknown == "before":
            x = self.mystery(x)
        source = self.normalised(x, "before") if block.norm == "pre" else x
        keys = graph.input("memory", "batch", "keys", D) if block.cross else source
        query, key, value = self.projections(source, keys)
        query, key = self.scaled_operands(self.heads(query, "query"), self.key_heads(key))
        value = self.heads(value, "value")
        self.named.update(query=query, key=key, value=value)
        scores = self.named["scores"] = graph("MatMul", query, key, out="scores")
        scores = self.scaled(scores, "scores")
        masked = self.named["masked"] = Masks(graph, block, x, keys).applied(scores)
        axis = {} if block.softmax_axis is None else {"axis": block.softmax_axis}
        probabilities = self.named["probabilities"] = graph("Softmax", masked, out="probabilities", **axis)
        context = self.named["context"] = graph("MatMul", self.after_softmax(probabilities), value, out="context")
        projected = graph("Add", graph("MatMul", self.merged(context), graph.weight("wo", D, D)), graph.weight("bo", D))
        residual = self.mystery(x) if block.unknown == "residual" else x
        total = graph("Add", projected, residual, out="y" if block.norm == "pre" else "")
        if block.norm != "pre":
            self.normalised(total, "after", out="y")
        ranks = dict.fromkeys(block.outputs, 4)
        for name in block.outputs:
            graph("Identity", self.named[name], out=f"{name}_out")
        return graph.model({"y": (TensorProto.FLOAT, 3), **{f"{name}_out": (TensorProto.FLOAT, ranks[name]) for name in ranks}})

    def mystery(self, x: str) -> str:
        return self.graph("Trilu", x, domain="com.microsoft", out="mystery", upper=1)

    def normalised(self, x: str, name: str, out: str = "") -> str:
        gamma = self.graph.weight(f"gamma_{name}", D)
        if self.block.opset < 17:
            centred = self.graph("Sub", x, self.graph("ReduceMean", x, axes=[-1]))
            variance = self.graph("ReduceMean", self.graph("Mul", centred, centred), axes=[-1])
            root = self.graph("Sqrt", self.graph("Add", variance, self.graph.const(1e-5)))
            scaled = self.graph("Mul", self.graph("Div", centred, root), gamma)
            return self.graph("Add", scaled, self.graph.weight(f"beta_{name}", D), out=out)
        if self.block.norm == "post-plain":
            return self.graph("LayerNormalization", x, gamma, out=out)
        return self.graph("LayerNormalization", x, gamma, self.graph.weight(f"beta_{name}", D), out=out, epsilon=1e-6)

    def projections(self, source: str, keys: str) -> tuple[str, str, str]:
        block, graph = self.block, self.graph
        if block.qkv == "separate":
            made = []
            for name, given in zip("qkv", (source, keys, keys), strict=True):
                projected = graph("MatMul", given, graph.weight(f"w{name}", D, D))
                made.append(graph("Add", projected, graph.weight(f"b{name}", D)) if name in block.biases else projected)
            return made[0], made[1], made[2]
        packed = graph("MatMul", source, graph.weight("wqkv", D, 3 * D))
        if block.biases:
            packed = graph("Add", graph.weight("bqkv", 3 * D), packed)
        if block.qkv == "slice":
            cut = [[graph.const([n], np.int64) for n in (start, start + D, -1)] for start in (0, D, 2 * D)]
            q, k, v = (graph("Slice", packed, *bounds) for bounds in cut)
            return q, k, v
        sizes = {"num_outputs": 3} if block.opset >= 18 else {}
        graph("Split", packed, outputs=["q_part", "k_part", "v_part"], axis=-1, **sizes)
        return "q_part", "k_part", "v_part"

    def heads(self, x: str, name: str) -> str:
        block, graph = self.block, self.graph
        if block.split == "unsplit":
            return graph("Reshape", x, graph.const([0, HEADS, -1, SIZE], np.int64), out=name)
        if block.split == "interleaved":
            return graph(
                "Transpose", graph("Reshape", x, graph.const([0, 0, SIZE, HEADS], np.int64)), perm=[0, 3, 1, 2], out=name
            )
        perm = [2, 0, 1, 3] if block.heads_first else [0, 2, 1, 3]
        return graph("Transpose", graph("Reshape", x, self.split_shape(x)), perm=perm, out=name)

    def key_heads(self, x: str) -> str:
        block, graph = self.block, self.graph
        if block.key_layout == "unsplit":
            return graph("Reshape", x, graph.const([0, HEADS, SIZE, -1], np.int64), out="key")
        if block.key_layout == "twice" or block.split in ("unsplit", "interleaved") or block.heads_first:
            return graph("Transpose", self.heads(x, "key_rows"), perm=[0, 1, 3, 2], out="key")
        return graph("Transpose", graph("Reshape", x, self.split_shape(x)), perm=[0, 2, 3, 1], out="key")

    def split_shape(self, x: str) -> str:
        graph = self.graph
        if self.block.split == "shape":
            tail = graph.const([HEADS, SIZE], np.int64)
            return graph("Concat", graph.size(x, 0), graph.size(x, 1), tail, axis=0)
        shapes = {"zeros": [0, 0, HEADS, SIZE], "heads": [0, 0, -1, SIZE], "sequence": [0, -1, HEADS, SIZE]}
        return graph.const(shapes[self.block.split], np.int64)

    def scaled_operands(self, query: str, key: str) -> tuple[str, str]:
        at = self.block.scale_at
        if at in ("query", "both"):
            query = self.scaled(query, at)
        if at in ("key", "both"):
            key = self.scaled(key, at)
        return query, key

    def scaled(self, x: str, at: str) -> str:
        """``x`` times the scale, if the scale is applied here."""
        block, graph = self.block, self.graph
        if block.scale is None or at != block.scale_at:
            return x
        factor = np.sqrt(block.scale) if at == "both" else block.scale
        if block.scale_from == "input":
            return graph("Div", x, graph.input("temperature") if "temperature" not in graph.inputs else "temperature")
        if block.scale_from == "shape":
            size = graph("Cast", graph.const([SIZE], np.int64) if at == "key" else graph.size("query", 3), to=TensorProto.FLOAT)
            root = graph("Sqrt", graph("Sqrt", size)) if at == "both" else graph("Sqrt", size)
            return graph("Mul", x, graph("Reciprocal", root)) if block.scale_op == "Mul" else graph("Div", x, root)
        if block.scale_from == "heads":
            return graph("Mul", x, graph.const(np.array([factor, 2 * factor]).reshape(HEADS, 1, 1)))
        node = block.scale_from == "constant"
        if block.scale_op == "Mul":
            return graph("Mul", graph.const(factor, node=node), x)
        if block.scale_op == "Sqrt":
            return graph("Div", x, graph("Sqrt", graph.const(factor**-2.0, node=node)))
        return graph("Div", x, graph.const(1 / factor, node=node))

    def after_softmax(self, probabilities: str) -> str:
        block, graph = self.block, self.graph
        if block.guard:
            probabilities = graph("Where", graph("IsNaN", probabilities), graph.const(0.0), probabilities)
        if block.head_mask is not None:
            probabilities = graph("Mul", probabilities, graph.const(np.array(block.head_mask).reshape(HEADS, 1, 1)))
        return probabilities

    def merged(self, context: str) -> str:
        graph, shape = self.graph, self.graph.const([0, -1, D], np.int64)
        if self.block.merge == "straight":
            return graph("Reshape", context, shape)
        perm = [1, 2, 0, 3] if self.block.heads_first else [0, 2, 1, 3]
        if self.block.split == "interleaved":
            perm = [0, 2, 3, 1]
        return graph("Reshape", graph("Transpose", context, perm=perm), shape)


@dataclass
class Masks:
    """What is done to the scores before the softmax.

    mask: "additive" (1 - mask) * fill; "add-where" adds Where(mask, 0, fill); "select" Where(mask, scores, fill); "select-masked"
        Where(mask == 0, fill, scores); "queries" the additive one over the query axis; "multiplied" scores * mask; "input" an
        additive float input; "bias" an input of (B, N, S, T); "vector" additive (1, 1, 1, T) from the first row alone; "none".
    causal: how a key is allowed: "k<=q" LessOrEqual(key, query), "q>=k" GreaterOrEqual(query, key), "not-k>q" Not(Greater),
        "trilu" and "constant" (lower triangle), "window" (|q - k| <= 1); or not causal: "k<q", "k>=q" (the future),
        "trilu-1" (one below the diagonal), "constant-flipped". ``Where(allowed, 0, fill)`` is added.
    """

    graph: Graph
    block: Block
    x: str
    keys: str

    def applied(self, scores: str) -> str:
        graph, fill = self.graph, self.block.fill
        if self.block.causal != "none":
            scores = self.causal(scores)
        kind = self.block.mask
        if kind == "none":
            return scores
        if kind == "bias":
            return graph("Add", scores, graph.input("bias", "batch", HEADS, "sequence", "sequence"))
        if kind == "input":
            return graph("Add", scores, graph.input("additive", "batch", 1, 1, "keys" if self.block.cross else "sequence"))
        mask = graph.input("mask", "batch", "keys" if self.block.cross else "sequence", elem_type=TensorProto.INT64)
        if kind == "vector":
            mask = graph("Gather", mask, graph.const([0], np.int64), axis=0)
        if kind == "additive":  # in two steps, as TorchScript writes it
            wide = graph.unsqueeze(graph.unsqueeze(mask, 1), 2)
        else:
            wide = graph.unsqueeze(mask, *((1, 3) if kind == "queries" else (1, 2)))
        if self.block.heads_first:
            wide = graph("Transpose", wide, perm=[1, 0, 2, 3])
        if kind in ("select", "select-masked", "add-where"):
            return self.selected(kind, wide, scores)
        numbers = graph("Cast", wide, to=TensorProto.FLOAT)
        if kind == "multiplied":
            return graph("Mul", scores, numbers)
        return graph("Add", scores, graph("Mul", graph("Sub", graph.const(1.0), numbers), graph.const(fill)))

    def causal(self, scores: str) -> str:
        graph, given = self.graph, self.block.causal_fill
        fill, allowed = graph.const(self.block.fill if given is None else given), self.allowed()
        if self.block.causal_op == "select":
            return graph("Where", allowed, scores, fill)
        if self.block.causal_op == "blend":
            kept = graph("Cast", allowed, to=TensorProto.FLOAT)
            return graph("Add", graph("Mul", scores, kept), graph("Mul", graph("Sub", graph.const(1.0), kept), fill))
        return graph("Add", scores, graph("Where", allowed, graph.const(0.0), fill))

    def selected(self, kind: str, wide: str, scores: str) -> str:
        graph, fill = self.graph, self.graph.const(self.block.fill)
        if kind == "select":
            return graph("Where", graph("Cast", wide, to=TensorProto.BOOL), scores, fill)
        masked = graph("Equal", wide, graph.const(0, np.int64))
        if kind == "select-masked":
            return graph("Where", masked, fill, scores)
        return graph("Add", scores, graph("Where", masked, fill, graph.const(0.0)))

    def allowed(self) -> str:
        """Booleans (S, T): which key a query may see."""
        graph, kind = self.graph, self.block.causal
        lengths = graph.size(self.x, 1), graph.size(self.keys, 1)
        if kind.startswith("constant"):
            whole = np.tril(np.ones((16, 16), bool))
            stored = graph.const(whole.T if kind == "constant-flipped" else whole, bool)
            start, axes = graph.const([0, 0], np.int64), graph.const([0, 1], np.int64)
            return graph("Slice", stored, start, graph("Concat", *lengths, axis=0), axes)
        if kind.startswith("trilu"):
            fill = numpy_helper.from_array(np.ones(1, np.float32))
            ones = graph("ConstantOfShape", graph("Concat", *lengths, axis=0), value=fill)
            below = [graph.const(-1, np.int64)] if kind == "trilu-1" else []
            return graph("Cast", graph("Trilu", ones, *below, upper=0), to=TensorProto.BOOL)
        query, key = (self.positions(length) for length in lengths)
        query, key = graph.unsqueeze(query, 1), graph.unsqueeze(key, 0)
        if kind == "window":
            near = graph("Abs", graph("Sub", query, key))
            return graph("LessOrEqual", near, graph.const(1, np.int64))
        if kind == "not-k>q":
            return graph("Not", graph("Greater", key, query))
        op, operands = {
            "k<=q": ("LessOrEqual", (key, query)),
            "q>=k": ("GreaterOrEqual", (query, key)),
            "k<q": ("Less", (key, query)),
            "k>=q": ("GreaterOrEqual", (key, query)),
        }[kind]
        return graph(op, *operands)

    def positions(self, length: str) -> str:
        graph = self.graph
        axes = {"axes": [0]} if self.block.opset < 13 else {}
        scalar = graph("Squeeze", length, *([] if axes else [graph.const([0], np.int64)]), **axes)
        return graph("Range", graph.const(0, np.int64), scalar, graph.const(1, np.int64))
