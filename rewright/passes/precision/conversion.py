"""Carries out what was decided: narrow constants and results, and a cast wherever a float32 neighbour reads or is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto

from rewright.model.elements import drop, make_constant, make_node, make_variable, normal_domain
from rewright.model.facts import dtype_of, is_constant, producer
from rewright.model.tensors import spill
from rewright.passes.precision.islands import is_made_narrow, wants
from rewright.passes.precision.keeping import Keeping, in_order
from rewright.passes.precision.operands import SINGLE, Role, is_single
from rewright.passes.session import PassSession

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Rounded:
    """What became of a constant: its bytes before and after, and the root mean square of the rounding, relative to its own."""

    name: str
    bytes_before: int
    bytes_after: int
    error: float | None


@dataclass
class Conversion:
    """One model on its way.

    Attributes:
        session: whose view is edited.
        keeping: which nodes are converted.
        casts: the casts that were added.
        cuts: the nodes that were added to cut masks off.
        constants: what became of constants, by the identity of the node that is their first reader.
        removed: casts that had nothing left to do.
    """

    session: PassSession
    keeping: Keeping
    casts: list[Any] = field(default_factory=list)
    cuts: list[Any] = field(default_factory=list)
    constants: dict[int, list[Rounded]] = field(default_factory=dict)
    removed: list[Any] = field(default_factory=list)
    _made: dict[int, Any] = field(default_factory=dict)
    _behind: dict[int, list[Any]] = field(default_factory=dict)
    _narrow_constants: dict[int, Any] = field(default_factory=dict)

    @property
    def _elem_type(self) -> int:
        return int(onnx.helper.np_dtype_to_tensor_dtype(self.keeping.limits.dtype))

    def carry_out(self, graphs: list[Any]) -> None:
        """Converts ``graphs``, the main graph first and its bodies after it."""
        main = graphs[0]
        nodes = list(in_order(main))
        values = [tensor for node in nodes for tensor in (*node.inputs, *node.outputs)]
        values += [tensor for graph in graphs for tensor in (*graph.inputs, *graph.outputs)]
        makers = {id(tensor): is_made_narrow(self.keeping, tensor) for tensor in values}
        for node in nodes:
            self._read(node, makers)
        for graph in graphs:
            self._return(graph, makers)
        for node in nodes:
            self._retype(node)
        self._place(graphs)
        self._remove_idle_casts(graphs)

    def _read(self, node: Any, makers: dict[int, bool]) -> None:
        """Lets the node read what it wants: a value as it is made, a cast of it, or a constant of its own type."""
        roles, narrow = self.keeping.roles[id(node)], self.keeping.is_narrow(node)
        for index, (tensor, role) in enumerate(zip(list(node.inputs), roles.inputs, strict=True)):
            if role in (None, Role.EITHER):
                continue
            wanted = narrow and role is Role.NARROW
            if is_constant(tensor):
                if wanted:
                    _set_input(node, index, self._narrow_constant(tensor, node))
            elif makers[id(tensor)] != wanted:
                _set_input(node, index, self._cast(tensor, narrow=wanted))

    def _cast(self, tensor: Any, *, narrow: bool) -> Any:
        """The value in the other type: what an existing cast was made of, or a new cast behind the value."""
        made = self._made.get(id(tensor))
        if made is not None:
            return made
        names, dtype = self.session.names, self.keeping.limits.dtype if narrow else SINGLE
        other = make_variable(names.fresh(f"{tensor.name}/{dtype.name}"))
        other.dtype, other.shape = dtype, tensor.shape
        kind = self._elem_type if narrow else TensorProto.FLOAT
        source = self._cut_off(tensor) if id(tensor) in self.keeping.cut_off else tensor
        cast = make_node("Cast", names.fresh(f"{tensor.name}/Cast"), "", [source], [other])
        cast.attrs = {"to": int(kind)}
        self.casts.append(cast)
        self._behind.setdefault(id(tensor), []).append(cast)
        self._made[id(tensor)] = other
        return other

    def _cut_off(self, mask: Any) -> Any:
        """The mask with its lowest numbers raised to one that the narrow type can add to scores."""
        names = self.session.names
        least = make_constant(names.fresh(f"{mask.name}/least"), np.array(self.keeping.reach.filler, np.float32))
        raised = make_variable(names.fresh(f"{mask.name}/raised"))
        raised.dtype, raised.shape = SINGLE, mask.shape
        node = make_node("Max", names.fresh(f"{mask.name}/Max"), "", [mask, least], [raised])
        self.cuts.append(node)
        self._behind.setdefault(id(mask), []).append(node)
        return raised

    def _narrow_constant(self, tensor: Any, node: Any) -> Any:
        """The constant in the narrow type: itself where nothing reads it as float32, else a second one."""
        made = self._narrow_constants.get(id(tensor))
        if made is not None:
            return made
        array = self.keeping.reach.array(tensor)
        if array is None:
            raise TypeError(f"'{tensor.name}' is no constant of floating-point numbers")
        values = self._rounded(tensor, array)
        error = _error(array, values) if array.ndim > 1 else None
        self.constants.setdefault(id(node), []).append(Rounded(tensor.name, array.nbytes, values.nbytes, error))
        maker = producer(tensor)
        if isinstance(tensor, gs.Constant) and not self._is_read_wide(tensor):
            tensor.values = values
            made = tensor
        elif maker is not None and not self._is_read_wide(tensor):
            maker.attrs = {"value": values}
            tensor.dtype = values.dtype
            made = tensor
        else:
            made = make_constant(self.session.names.fresh(f"{tensor.name}/{values.dtype.name}"), values)
        if isinstance(made, gs.Constant):
            spill(made, self.session.view.model.files)
        self._narrow_constants[id(tensor)] = made
        return made

    def _is_read_wide(self, tensor: Any) -> bool:
        """Whether anything reads the constant as it is."""
        if any(item is tensor for graph in self.session.view.graphs() for item in graph.outputs):
            return True
        kept = self.keeping
        for user in tensor.outputs:
            roles = kept.roles.get(id(user))
            if roles is None or False in wants(kept, user, tensor):
                return True
            if any(item is tensor and role is Role.EITHER for item, role in zip(user.inputs, roles.inputs, strict=False)):
                return True
        return False

    def _rounded(self, tensor: Any, array: Array) -> Array:
        limits, reach = self.keeping.limits, self.keeping.reach
        with np.errstate(over="ignore", under="ignore"):
            if id(tensor) in reach.fillers:
                array = np.where(np.isfinite(array) & (array < reach.filler), np.float32(reach.filler), array)
            elif id(tensor) in self.keeping.clipped:
                array = np.where(np.isfinite(array), np.clip(array, -limits.largest, limits.largest), array)
            return array.astype(limits.dtype)

    def _return(self, graph: Any, makers: dict[int, bool]) -> None:
        """Lets a graph return what it returned before, or with the interface converted the narrow type."""
        is_main = graph is self.session.view.graph
        for index, tensor in enumerate(graph.outputs):
            if not tensor.name or is_constant(tensor) or not is_single(tensor):
                continue
            narrow = is_main and id(tensor) in self.keeping.narrow_results
            if makers.get(id(tensor), False) == narrow:
                continue  # it is made as it is returned
            if not is_main:
                graph.outputs[index] = self._cast(tensor, narrow=narrow)
            elif producer(tensor) is not None:
                self._keep_name(tensor, narrow=narrow)
                makers[id(tensor)] = narrow

    def _keep_name(self, tensor: Any, *, narrow: bool) -> None:
        """Puts a cast between a value and its name, which the model returns."""
        other = self._cast(tensor, narrow=narrow)
        maker, (cast, *_) = producer(tensor), self._behind.pop(id(tensor))
        inner = make_variable(self.session.names.fresh(f"{tensor.name}/{(SINGLE if narrow else self.keeping.limits.dtype).name}"))
        inner.dtype, inner.shape = (SINGLE if narrow else self.keeping.limits.dtype), tensor.shape
        _set_output(maker, tensor, inner)
        for user in list(tensor.outputs):
            _replace(user, tensor, inner)
        for user in list(other.outputs):
            _replace(user, other, tensor)
        _set_output(cast, other, tensor)
        tensor.dtype = self.keeping.limits.dtype if narrow else SINGLE
        self._behind[id(inner)] = [cast]
        self._made[id(inner)] = tensor

    def _retype(self, node: Any) -> None:
        if not self.keeping.is_narrow(node):
            return
        dtype, roles = self.keeping.limits.dtype, self.keeping.roles[id(node)]
        if node.op in ("Cast", "ConstantOfShape") and not normal_domain(node.domain):
            self._set_attribute(node)
        for tensor, role in zip(node.outputs, roles.outputs, strict=True):
            if role is Role.NARROW:
                tensor.dtype = dtype

    def _set_attribute(self, node: Any) -> None:
        if node.op == "Cast":
            node.attrs["to"] = self._elem_type
        else:
            held = node.attrs.get("value")
            value = np.zeros(1, np.float32) if held is None else np.asarray(getattr(held, "values", held))
            node.attrs["value"] = value.astype(self.keeping.limits.dtype)

    def _place(self, graphs: list[Any]) -> None:
        """Puts each cast behind what computes its operand; those of inputs and constants first."""
        for graph in graphs:
            nodes = [cast for tensor in graph.inputs for cast in self._behind.pop(id(tensor), ())]
            for node in graph.nodes:
                nodes.append(node)
                for tensor in node.outputs:
                    nodes.extend(self._behind.pop(id(tensor), ()))
            graph.nodes = nodes
        if self._behind:
            raise TypeError("a cast has no place")
        for tensor in graphs[0].inputs:
            if id(tensor) in self.keeping.narrow_inputs:
                tensor.dtype = self.keeping.limits.dtype

    def _remove_idle_casts(self, graphs: list[Any]) -> None:
        """Takes out casts of a value to the type that it has now; what a graph returns keeps its name."""
        returned = {id(tensor) for graph in graphs for tensor in graph.outputs}
        for graph in graphs:
            kept = []
            for node in graph.nodes:
                if self._is_idle(node) and id(node.outputs[0]) not in returned:
                    source, result = node.inputs[0], node.outputs[0]
                    for user in list(result.outputs):
                        _replace(user, result, source)
                    drop(source.outputs, node)
                    drop(result.inputs, node)
                    node.alive = False
                    self.removed.append(node)
                else:
                    kept.append(node)
            graph.nodes = kept

    def _is_idle(self, node: Any) -> bool:
        if node.op != "Cast" or normal_domain(node.domain) or is_constant(node.inputs[0]):
            return False
        dtype = dtype_of(node.inputs[0])
        is_ours = dtype == self.keeping.limits.dtype
        return bool(is_ours and node.attrs.get("to") == self._elem_type)


def _error(before: Array, after: Array) -> float | None:
    flat, rounded = before.reshape(-1), after.reshape(-1)
    signal = noise = 0.0
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        difference = rounded[start : start + _CHUNK].astype(np.float64) - part
        with np.errstate(invalid="ignore"):
            signal, noise = signal + float(part @ part), noise + float(difference @ difference)
    return float(np.sqrt(noise / signal)) if signal > 0.0 and np.isfinite(signal) else None


_CHUNK = 1 << 20


def _set_input(node: Any, index: int, tensor: Any) -> None:
    old = node.inputs[index]
    if old is tensor:
        return
    list.__setitem__(node.inputs, index, tensor)
    drop(old.outputs, node)
    list.append(tensor.outputs, node)


def _replace(node: Any, old: Any, new: Any) -> None:
    for index, tensor in enumerate(node.inputs):
        if tensor is old:
            _set_input(node, index, new)


def _set_output(node: Any, old: Any, new: Any) -> None:
    index = next(place for place, tensor in enumerate(node.outputs) if tensor is old)
    list.__setitem__(node.outputs, index, new)
    drop(old.inputs, node)
    list.append(new.inputs, node)
