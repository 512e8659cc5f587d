"""The nodes that stand for a rotation: shared between all rotations of a graph that read the same caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.model.elements import make_constant, make_node, make_variable
from rewright.model.facts import constant_of, dtype_of, infer_outputs, is_constant, producer, shape_of
from rewright.model.names import Names
from rewright.ops.microsoft import DOMAIN
from rewright.passes.cleanup.dimensions import Size
from rewright.passes.rotary.caches import Caches
from rewright.passes.rotary.rotation import Cache, Rotation
from rewright.passes.rotary.terms import Terms

_SLICE_HAS_INPUTS: Final = 10
HEADS: Final = 1
POSITIONS: Final = 2


@dataclass(frozen=True)
class Layout:
    """Where the axes of the heads are: ``positions`` is 2 or 1; ``per_batch`` tells whether each row has its own caches."""

    positions: int
    per_batch: bool
    dims: tuple[Size, ...]


class Emission:
    """Makes nodes in one graph. What was made once from the same inputs is used again."""

    def __init__(self, names: Names, opset: int) -> None:
        self._names, self._opset = names, opset
        self.scope = ""
        self._made: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self.nodes: list[Any] = []

    def take(self) -> list[Any]:
        """The nodes made since the last call."""
        taken, self.nodes = self.nodes, []
        return taken

    def make(self, op: str, inputs: list[Any], attributes: dict[str, Any], domain: str = "") -> Any:
        """The output of such a node."""
        key = op, domain, tuple(map(id, inputs)), repr(sorted(attributes.items()))
        if key not in self._made:
            name = self._names.fresh(f"{self.scope}/{op}" if self.scope else op)
            output = make_variable(self._names.fresh(f"{name}_output_0"))
            node = make_node(op, name, domain, list(inputs), [output])
            node.attrs = dict(attributes)
            if not domain:
                infer_outputs(node, self._opset)
            self.nodes.append(node)
            self._made[key] = output, inputs  # the inputs too, so that no other value gets their identity
        return self._made[key][0]

    def constant(self, array: Any) -> Any:
        """Such a constant."""
        array = np.asarray(array)
        key = "", array.dtype.str, array.shape, array.tobytes()
        if key not in self._made:
            base = f"{self.scope}/constant" if self.scope else "constant"
            self._made[key] = make_constant(self._names.fresh(base), array), ()
        return self._made[key][0]

    def contributed(self, rotation: Rotation, layout: Layout, caches: Caches) -> Any:
        """The output of nodes with com.microsoft.RotaryEmbedding."""
        cos, sin = (self._rows(cache, caches) for cache in (rotation.cos, rotation.sin))
        positions = self._positions(rotation.cos) if layout.per_batch else self.constant(np.zeros(1, np.int64))
        attributes = {"interleaved": int(rotation.interleaved)}
        return self._on_heads(rotation, layout, [positions, cos, sin], attributes, DOMAIN)

    def standard(self, rotation: Rotation, layout: Layout, caches: Caches) -> Any:
        """The output of nodes with ONNX's RotaryEmbedding, whose caches have a row for each element of the batch."""
        batch = self.make("Shape", [rotation.x], {"start": 0, "end": 1})
        tables = []
        for cache in (rotation.cos, rotation.sin):
            rows = self._rows(cache, caches)
            half = rotation.rotated // 2
            if layout.per_batch:
                shape = self.make("Concat", [batch, self.constant(np.array([-1, half]))], {"axis": 0})
                tables.append(self.make("Reshape", [rows, shape], {}))
            else:
                one = self.make("Reshape", [rows, self.constant(np.array([1, -1, half]))], {})
                shape = self.make("Concat", [batch, self.constant(np.array([1, 1]))], {"axis": 0})
                tables.append(self.make("Expand", [one, shape], {}))
        return self._on_heads(rotation, layout, tables, {"interleaved": int(rotation.interleaved)}, "")

    def _on_heads(self, rotation: Rotation, layout: Layout, operands: list[Any], attributes: dict[str, Any], domain: str) -> Any:
        """The op on (batch, heads, positions, elements), or on (batch, positions, heads * elements) between two Reshapes."""
        x, size = rotation.x, rotation.size
        whole = rotation.first == 0 and shape_of(x)[-1] == size  # type: ignore[index]
        heads = layout.dims[HEADS if layout.positions == POSITIONS else POSITIONS]
        if rotation.rotated < size:
            attributes |= {"rotary_embedding_dim": rotation.rotated, "num_heads": heads}
        if not whole:
            x = self._slice(x, rotation.first, rotation.first + size)
        if layout.positions == POSITIONS:
            return self.make("RotaryEmbedding", [x, *operands], attributes, domain)
        width = int(heads) * size  # type: ignore[arg-type]
        maker = producer(x)
        flat = maker.inputs[0] if whole and maker is not None and maker.op == "Reshape" else None
        if flat is None or shape_of(flat) is None or shape_of(flat) != (*(shape_of(x) or ())[:2], width):
            flat = self.make("Reshape", [x, self.constant(np.array([0, 0, width]))], {})
        turned = self.make("RotaryEmbedding", [flat, *operands], attributes | {"num_heads": heads}, domain)
        turned.dtype, turned.shape = dtype_of(x), [*(shape_of(x) or ())[:2], width]
        return self.make("Reshape", [turned, self.constant(np.array([0, 0, heads, size]))], {})

    def _slice(self, x: Any, start: int, end: int) -> Any:
        if self._opset < _SLICE_HAS_INPUTS:
            return self.make("Slice", [x], {"starts": [start], "ends": [end], "axes": [3]})
        return self.make("Slice", [x, *(self.constant(np.array([item])) for item in (start, end, 3))], {})

    def _rows(self, cache: Cache, caches: Caches) -> Any:
        """(rows, pairs): one cosine or sine for each pair and each position, of all the batch one after another."""
        picked = self._picked(cache, caches)
        half = len(cache.elements)
        if is_constant(picked):
            return self.constant(np.asarray(constant_of(picked)).reshape(-1, half))
        if len(shape_of(picked) or (0,) * 3) == 2:
            return picked
        return self.make("Reshape", [picked, self.constant(np.array([-1, half]))], {})

    def _picked(self, cache: Cache, caches: Caches) -> Any:
        source = cache.source.tensor
        return caches.picked(source, Terms.count(source), cache.elements, self.make, self.constant)

    def _positions(self, cache: Cache) -> Any:
        """(batch, positions): 0, 1, 2, ... through all the rows of the caches."""
        source = cache.source.tensor
        axes = [0, 1] if cache.source.by_position else self._batch_and_positions(source)
        shape = self.make("Gather", [self.make("Shape", [source], {}), self.constant(np.array(axes))], {"axis": 0})
        count = self.make("ReduceProd", [shape], {"keepdims": 0})
        zero, one = self.constant(np.array(0)), self.constant(np.array(1))
        return self.make("Reshape", [self.make("Range", [zero, count, one], {}), shape], {})

    @staticmethod
    def _batch_and_positions(source: Any) -> list[int]:
        """The axes of the batch and of the positions: of the three before the elements, the first and that which is not 1."""
        shape = shape_of(source) or ()
        lead = len(shape) - Terms.count(source)
        return [lead - 3, lead - 1 if shape[lead - 2] == 1 else lead - 2]
