"""The nodes that stand for a rotation: shared between all rotations of a graph that read the same caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rewright.model.elements import make_constant, make_node, make_variable
from rewright.model.facts import (
    attribute,
    constant_of,
    dtype_of,
    infer_outputs,
    is_constant,
    is_small_constant,
    producer,
    shape_of,
)
from rewright.model.graph import state_of
from rewright.model.names import Names
from rewright.ops.microsoft import DOMAIN
from rewright.passes.rotary.caches import Caches
from rewright.passes.rotary.rotation import Cache, Rotation
from rewright.passes.rotary.terms import Terms
from rewright.shapes.dimensions import Size

_SLICE_HAS_INPUTS: Final = 10
_RESHAPE_HAS_ALLOWZERO: Final = 14
_FEW: Final = 16
FIRST_TWO: Final = [1, 0, 2, 3]
HEADS: Final = 1
POSITIONS: Final = 2


@dataclass(frozen=True)
class Layout:
    """Which axis of x the positions are, 2, 1 or 0; whether each element of the batch has caches of its own; the sizes of x.

    (batch, heads, positions, elements), (batch, positions, heads, elements) or (positions, batch, heads, elements).
    """

    positions: int
    per_batch: bool
    dims: tuple[Size, ...]

    @property
    def heads(self) -> Size:
        """The number of heads."""
        return self.dims[HEADS if self.positions == POSITIONS else POSITIONS]


class Emission:
    """Makes nodes in one graph. What was made once from the same inputs is used again."""

    def __init__(self, names: Names, graph: Any, opset: int) -> None:
        self._names, self._graph, self._opset = names, graph, opset
        self.scope = ""
        self._made: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self._searched = False
        self.nodes: list[Any] = []

    def take(self) -> list[Any]:
        """The nodes made since the last call."""
        taken, self.nodes = self.nodes, []
        return taken

    def make(self, op: str, inputs: list[Any], attributes: dict[str, Any], domain: str = "") -> Any:
        """The output of such a node, the same one for the same inputs."""
        key = op, domain, tuple(map(id, inputs)), repr(sorted(attributes.items()))
        if key not in self._made:
            # With the inputs, so that no other value gets their identity.
            self._made[key] = self.make_another(op, inputs, attributes, domain), inputs
        return self._made[key][0]

    def make_another(self, op: str, inputs: list[Any], attributes: dict[str, Any], domain: str = "") -> Any:
        """The output of a node of its own, as the one has to be that takes a value's place."""
        name = self._names.fresh(f"{self.scope}/{op}" if self.scope else op)
        output = make_variable(self._names.fresh(f"{name}_output_0"))
        node = make_node(op, name, domain, list(inputs), [output])
        node.attrs = dict(attributes)
        if not domain:
            infer_outputs(node, self._opset)
        self.nodes.append(node)
        return output

    def constant(self, array: Any) -> Any:
        """Such a constant."""
        array = np.asarray(array)
        if not self._searched:
            self._find_constants()
        key = _constant_key(array)
        if key not in self._made:
            base = f"{self.scope}/constant" if self.scope else "constant"
            self._made[key] = make_constant(self._names.fresh(base), array), ()
        return self._made[key][0]

    def _find_constants(self) -> None:
        """The graph's own small constants, for equal ones would have to be merged afterwards."""
        self._searched = True
        for held in state_of(self._graph).initializers.values():
            if is_small_constant(held, _FEW) and (array := constant_of(held)) is not None and array.dtype.kind == "i":
                self._made.setdefault(_constant_key(array), (held, ()))

    def contributed(self, rotation: Rotation, layout: Layout, caches: Caches) -> Any:
        """The output of nodes with com.microsoft.RotaryEmbedding."""
        cos, sin = (self._rows(cache, caches) for cache in (rotation.cos, rotation.sin))
        positions = (
            self._positions(rotation.cos, layout, self._picked(rotation.cos, caches))
            if layout.per_batch
            else self.constant(np.zeros(1, np.int64))
        )
        attributes = {"interleaved": int(rotation.interleaved)}
        return self._on_heads(rotation, layout, [positions, cos, sin], attributes, DOMAIN)

    def standard(self, rotation: Rotation, layout: Layout, caches: Caches) -> Any:
        """The output of nodes with ONNX's RotaryEmbedding, whose caches have a row for each element of the batch."""
        axis = 1 if layout.positions == 0 else 0
        batch = self.make("Shape", [rotation.x], {"start": axis, "end": axis + 1})
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
        x, size, heads = rotation.x, rotation.size, layout.heads
        if rotation.rotated < size:
            attributes |= {"rotary_embedding_dim": rotation.rotated, "num_heads": heads}
        if rotation.first or shape_of(x)[-1] != size:  # type: ignore[index]
            x = self._slice(x, rotation.first, rotation.first + size)
        if layout.positions == POSITIONS:
            return self.make_another("RotaryEmbedding", [x, *operands], attributes, domain)
        if layout.positions == 0:
            x = self._transposed(x)
        flat = self._flat(x, int(heads) * size)  # type: ignore[arg-type]
        turned = self.make_another("RotaryEmbedding", [flat, *operands], attributes | {"num_heads": heads}, domain)
        turned.dtype, turned.shape = dtype_of(flat), list(shape_of(flat) or ()) or None
        result = self.make_another("Reshape", [turned, self.constant(np.array([0, 0, heads, size]))], {})
        return self.make_another("Transpose", [result], {"perm": FIRST_TWO}) if layout.positions == 0 else result

    def _flat(self, x: Any, width: int) -> Any:
        """(batch, positions, heads * elements), which is often what x was made of."""
        maker, wanted = producer(x), (*(shape_of(x) or ())[:2], width)
        if maker is not None and maker.op == "Reshape" and shape_of(maker.inputs[0]) == wanted and None not in wanted:
            return maker.inputs[0]
        return self.make("Reshape", [x, self.constant(np.array([0, 0, width]))], {})

    def _transposed(self, x: Any) -> Any:
        """x with its first two axes exchanged."""
        maker = producer(x)
        if maker is not None and maker.op == "Transpose" and attribute(maker, "perm") == FIRST_TWO:
            return maker.inputs[0]
        return self.make("Transpose", [x], {"perm": FIRST_TWO})

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
        key = "picked", id(source), cache.elements.tobytes()
        if key not in self._made:
            found = caches.picked(source, Terms.count(source), cache.elements, self.make, self.constant)
            self._made[key] = found, source
        return self._made[key][0]

    def _positions(self, cache: Cache, layout: Layout, picked: Any) -> Any:
        """(batch, positions): 0, 1, 2, ... through all the rows of the caches."""
        axes = [0, 1 if cache.source.by_position else layout.positions]
        rank = len(shape_of(picked) or ())
        if rank == 3:  # the axis of the heads came later
            source, axes = picked, [0, 1]
        else:
            source = cache.source.tensor
        whole = self.make("Shape", [source], {})
        shape = self.make("Gather", [whole, self.constant(np.array(axes))], {"axis": 0})
        count = self.make("ReduceProd", [shape], {"keepdims": 0})
        zero, one = self.constant(np.array(0)), self.constant(np.array(1))
        literally = {"allowzero": 1} if self._opset >= _RESHAPE_HAS_ALLOWZERO else {}
        return self.make("Reshape", [self.make("Range", [zero, count, one], {}), shape], literally)


def _constant_key(array: Any) -> tuple[Any, ...]:
    return "", array.dtype.str, array.shape, array.tobytes()
