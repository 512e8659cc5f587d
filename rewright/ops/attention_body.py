"""Parts that the bodies of the attention ops share: heads whatever the rank, masks whatever the form, rotation, the softmax.

A body is built before shapes are known, so that nothing here asks for a rank: layouts come from shape arithmetic that holds for
each rank that the op admits. Results end in a Reshape to a shape that onnx's data propagation can follow, which is how
shape inference sees through a lowered op.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from rewright.ops.body import BodyBuilder

_END: Final = 2**31 - 1
_ALLOWZERO_SINCE: Final = 14
_SPLIT_INPUT_SINCE: Final = 13
_NUM_OUTPUTS_SINCE: Final = 18


class AttentionBuilder(BodyBuilder):
    """A body builder that knows attention. B batch, S queries, T keys, N heads, H head size; dimensions are vectors of one.

    The same op on the same values is made once: shape arithmetic would repeat itself otherwise.
    """

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        key = (op, inputs, repr(attributes))
        if key not in self._made:
            self._made[key] = super().__call__(op, *inputs, **attributes)
        return self._made[key]

    @cached_property
    def _made(self) -> dict[tuple[Any, ...], str]:
        return {}

    def given(self, name: str) -> bool:
        """Whether the node has this optional input."""
        return name in self.inputs

    def ints(self, *values: int) -> str:
        """A constant vector."""
        return self("Constant", value=onnx.numpy_helper.from_array(np.asarray(values, np.int64)))

    def scalar(self, value: int) -> str:
        """A constant without dimensions."""
        return self("Constant", value=onnx.numpy_helper.from_array(np.asarray(value, np.int64)))

    def dim(self, name: str, axis: int) -> str:
        """One dimension of a value."""
        return self("Gather", self("Shape", name), self.ints(axis))

    def cut(self, name: str, start: str, end: str, axis: int = 0) -> str:
        """name[start:end] along an axis."""
        return self("Slice", name, start, end, self.ints(axis))

    def range(self, length: str) -> str:
        """0 up to, not including, a dimension."""
        return self("Range", self.scalar(0), self("Reshape", length, self.ints()), self.scalar(1))

    def with_axis(self, name: str, axis: int) -> str:
        """A value with an axis of length 1 put in, which Unsqueeze spells differently from opset to opset."""
        shape = self("Shape", name)
        before, after = self.cut(shape, self.ints(0), self.ints(axis)), self.cut(shape, self.ints(axis), self.ints(_END))
        return self("Reshape", name, self("Concat", before, self.ints(1), after, axis=0))

    def reshaped(self, name: str, *dims: str) -> str:
        """A value with these dimensions, of which a 0 means 0 as far as the opset can say so."""
        attributes = {"allowzero": 1} if self.opset >= _ALLOWZERO_SINCE else {}
        return self("Reshape", name, self("Concat", *dims, axis=0), **attributes)

    def split(self, name: str, sizes: list[int] | None) -> list[str]:
        """Three parts of the last axis: of these sizes, or equal ones."""
        outputs = [f"split_{len(self._nodes)}_{part}" for part in range(3)]
        inputs = [name]
        attributes: dict[str, Any] = {"axis": -1}
        if sizes and self.opset < _SPLIT_INPUT_SINCE:
            attributes["split"] = sizes
        elif sizes:
            inputs.append(self.ints(*sizes))
        elif self.opset >= _NUM_OUTPUTS_SINCE:
            attributes["num_outputs"] = 3
        self._nodes.append(helper.make_node("Split", inputs, outputs, **attributes))
        return outputs

    def by_head(self, name: str, heads: str, head_size: str | None = None) -> str:
        """(B, T, N*H) as (B, 1, T, N, H), and (B, N, T, H) as (B, N, T, 1, H)."""
        shape = self("Shape", name)
        middle = self.cut(shape, self.ints(1), self.ints(-2))  # nothing, or N
        outer = self("Gather", self("Concat", middle, self.ints(1), axis=0), self.ints(0))
        inner = self("Div", heads, outer)
        last = self("Div", self.dim(name, -1), inner) if head_size is None else head_size
        return self.reshaped(name, self.dim(name, 0), outer, self.dim(name, -2), inner, last)

    def heads_first(self, name: str, heads: int) -> str:
        """(B, T, N*H) or (B, N, T, H) as (B, N, T, H)."""
        split = self("Transpose", self.by_head(name, self.ints(heads)), perm=[0, 1, 3, 2, 4])
        return self.reshaped(split, self.dim(name, 0), self.ints(heads), self.dim(name, -2), self.dim(split, -1))

    def hidden(self, name: str) -> str:
        """N*H of a (B, T, N*H) or (B, N, T, H), found without a division, which data propagation does not follow."""
        middle = self.cut(self("Shape", name), self.ints(1), self.ints(-2))
        outer = self("Gather", self("Concat", middle, self.ints(1), axis=0), self.ints(0))
        return self("Mul", self.dim(name, -1), outer)

    def lengths_or_mask(self, mask: str, batch: str, total: str, starts: bool) -> str:
        """Which keys a mask keeps, (B, 1, 1 or S, T): from (B, T), (B, S, T), (B) ends, (3B + 2) whose first B are ends, and
        with ``starts`` (2B) ends and then starts. A raw mask keeps where it is positive."""
        values = self("Cast", mask, to=TensorProto.INT64)
        vector = self("Equal", self("Size", self("Shape", mask)), self("Size", self.ints(0)))
        positive = self("Cast", self("Greater", values, self.ints(0)), to=TensorProto.INT64)
        ends = self("Reshape", self("Where", vector, values, self("Mul", positive, total)), self.ints(-1))
        rest = self.cut(self("Shape", mask), self.ints(1), self.ints(_END))
        plane = self.cut(self("Concat", self.ints(1, 1), rest, axis=0), self.ints(-2), self.ints(_END))  # (1, 1) of a vector
        count = self("Mul", batch, self("ReduceProd", plane, keepdims=1))
        shape = self("Concat", batch, self.ints(1), plane, axis=0)
        position = self.range(total)
        kept = self("Less", position, self("Reshape", self.cut(ends, self.ints(0), count), shape))
        if not starts:
            return kept
        double = self("Mul", batch, self.ints(2))
        zeros = self("ConstantOfShape", batch, value=onnx.numpy_helper.from_array(np.zeros(1, np.int64)))
        second = self.cut(self("Concat", self.cut(ends, batch, double), zeros, axis=0), self.ints(0), batch)
        has_starts = self("And", vector, self("Equal", self("Size", mask), double))
        first = self("Reshape", self("Where", has_starts, second, zeros), self("Concat", batch, self.ints(1, 1, 1), axis=0))
        return self("And", kept, self("Not", self("Less", position, first)))

    def causal(self, queries: str, total: str, past: str) -> str:
        """Which keys a query may see, (S, T): those up to its own position, which starts at the length of the past.

        The last query sees all keys: that is what the CPU kernels do, and it makes a difference only where T is not past + S.
        """
        row = self("Reshape", self.range(queries), self.ints(-1, 1))
        seen = self("Less", self.range(total), self("Add", self("Add", row, past), self.ints(1)))
        return self("Or", seen, self("Equal", row, self("Sub", queries, self.ints(1))))

    def default_scale(self, query: str, scale: float) -> str:
        """The factor of the scores: ``scale``, or 1 / sqrt(H) where it is 0; the query is (B, N, S, H)."""
        if scale:
            return self.constant(scale)
        return self("Reciprocal", self("Sqrt", self("Cast", self.dim(query, -1), to=self.work_type)))

    def attend(self, query: str, key: str, value: str, scale: float, bias: str | None, softcap: float = 0.0) -> str:
        """softmax(scale * Q K' + bias) V, as (B, S, N, H). All operands are (B, N, positions, head size)."""
        product = self("MatMul", query, self("Transpose", key, perm=[0, 1, 3, 2]))
        scores = self("Mul", product, self.default_scale(query, scale))
        if softcap:
            cap = self.constant(softcap)
            scores = self("Mul", self("Tanh", self("Div", scores, cap)), cap)
        if bias is not None:
            scores = self("Add", scores, bias)
        return self("Transpose", self("MatMul", self("Softmax", scores, axis=-1), value), perm=[0, 2, 1, 3])

    def merged(self, attended: str, query: str, hidden: str) -> str:
        """(B, S, N, H) as (B, S, N*H), B and S taken from the query's own shape."""
        leading = self.cut(self("Shape", query), self.ints(0), self.ints(2))
        return self("Reshape", attended, self("Concat", leading, hidden, axis=0))

    def rotated(self, name: str, cos: str, sin: str, interleaved: bool) -> str:
        """The first 2W entries of each head rotated by W angles, the others kept.

        ``name`` is (B, N or 1, S, 1 or N, H), cos and sin are (B or 1, 1, S, 1, W).
        """
        width = self.dim(cos, -1)
        double = self("Mul", width, self.ints(2))
        turning = self.cut(name, self.ints(0), double, -1)
        pairs = ([self.ints(0, 0, 0, 0), width, self.ints(2)], [self.ints(0, 0, 0, 0), self.ints(2), width])
        shape = self("Concat", *pairs[0 if interleaved else 1], axis=0)
        axis = -1 if interleaved else -2
        pair = self("Reshape", turning, shape)
        left, right = (self("Gather", pair, self.ints(part), axis=axis) for part in (0, 1))
        one = [width, self.ints(1)] if interleaved else [self.ints(1), width]
        cos, sin = (self("Reshape", item, self("Concat", self.ints(0, 0, 0, 0), *one, axis=0)) for item in (cos, sin))
        turned = self(
            "Concat",
            self("Sub", self("Mul", left, cos), self("Mul", right, sin)),
            self("Add", self("Mul", left, sin), self("Mul", right, cos)),
            axis=axis,
        )
        flat = self("Reshape", turned, self("Concat", self.ints(0, 0, 0, 0), double, axis=0))
        return self("Concat", flat, self.cut(name, double, self.ints(_END), -1), axis=-1)

    def angles(self, cache: str, positions: str, queries: str) -> str:
        """Rows of a (positions, W) cache as (B or 1, 1, S, 1, W); positions are (B, S), or one offset as scalar or (1)."""
        counted = self("Less", self("Size", self("Shape", positions)), self("Size", self.ints(0, 0)))
        offsets = self("Mul", self.range(queries), self("Cast", counted, to=TensorProto.INT64))
        rows = self("Gather", self.widened(cache), self("Add", positions, offsets), axis=0)
        leading = self.cut(self("Shape", positions), self.ints(0), self.ints(-1))
        batch = self("Gather", self("Concat", self.ints(1), leading, axis=0), self.ints(-1))
        return self.reshaped(rows, batch, self.ints(1), queries, self.ints(1), self.dim(cache, -1))
