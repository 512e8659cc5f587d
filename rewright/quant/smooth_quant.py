"""The ``smooth-quant`` pass."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field

from rewright.model.elements import make_constant
from rewright.model.facts import attribute, constant_of, dtype_of, producer
from rewright.model.names import scope_of
from rewright.passes.deferral import Deferral
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession, op_key
from rewright.pattern.builder import Builder
from rewright.pattern.values import Value
from rewright.quant.activations import CalibrationError, CalibrationPath, calibration_sets
from rewright.quant.affine import Array
from rewright.quant.calibration.measuring import channel_maxima
from rewright.quant.integer_attention import projection_of
from rewright.quant.integer_products import product_of
from rewright.quant.integer_weights import MissedError, Use

_PRODUCTS: Final = ("MatMul", "Gemm", "com.microsoft::FusedMatMul")
_ATTENTION: Final = "com.microsoft::Attention"
_GAMMAS: Final[dict[str, tuple[int, ...]]] = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "com.microsoft::LayerNormalization": (1, 2),
    "com.microsoft::SimplifiedLayerNormalization": (1,),
    "com.microsoft::SkipLayerNormalization": (2, 3),
    "com.microsoft::SkipSimplifiedLayerNormalization": (2,),
}
"""The inputs of a normalisation that scale with its first output."""

_MOST_EXPONENT: Final = 20


@dataclass
class _Group:
    """Products that multiply one value by constant matrices.

    Attributes:
        tensor: the value.
        uses: node and weight of each.
        width: of the value's last axis, K.
    """

    tensor: Any
    uses: list[tuple[Any, Use]] = field(default_factory=list)
    width: int = 0


class SmoothQuant(GraphPass):
    """Moves outliers of activations into the weights, so that both can be quantized: x @ w = (x / s) @ (s * w).

    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) for each channel j, rounded to a power of two, so that nothing is rounded by
    dividing x and multiplying w: the model computes what it did before.

    1. The largest magnitudes of activations come from ``calibration``, an .npz file or a folder of them, with one input set each.
    2. All MatMul, Gemm, FusedMatMul and com.microsoft.Attention that read one value share s, which the largest of their
       weights gives.
    3. 1/s goes into scale and bias of the LayerNormalization, RMSNormalization or fused normalisation that gives the value, where
       nothing else reads it; else a Mul is put in, or with ``fold_only`` the place is left.
    4. Left alone, with the reason: weights that another node reads as well, values without a fixed last axis, nodes in bodies,
       channels that are even already.

    Run it before ``quantize-static`` or ``quantize-dynamic``. A second run finds nothing to do.
    Source: G. Xiao et al., SmoothQuant, 2023.
    """

    name = "smooth-quant"
    exactness = "reassociating"
    ort = Deferral(declines="onnxruntime.quantization leaves it to neural-compressor, which is not part of ONNX Runtime")
    before: ClassVar[tuple[str, ...]] = ("quantize-static", "quantize-dynamic")

    calibration: CalibrationPath = Field(default=None, description="Inputs to calibrate on: an .npz file, or a folder of them.")
    alpha: float = Field(default=0.5, ge=0, le=1, description="How much of the outliers goes to the weights.")
    fold_only: bool = Field(default=False, description="Only where a normalisation takes the factors, and no Mul is put in.")

    def run(self, session: PassSession) -> None:
        session.ensure_facts()
        groups = _groups(session)
        if not groups:
            return
        if self.calibration is None:
            raise CalibrationError(
                "smooth-quant needs calibration data.", "Give calibration=PATH: .npz files with inputs as they come."
            )
        names = [group.tensor.name for group in groups]
        maxima = channel_maxima(session, session.view.to_model(), calibration_sets(self.calibration), names)
        for group in groups:
            try:
                self._smooth(session, group, maxima.get(group.tensor.name))
            except MissedError as missed:
                session.reject(group.uses[0][0], missed.reason)

    def _smooth(self, session: PassSession, group: _Group, largest: Array | None) -> None:
        if largest is None or largest.shape != (group.width,):
            raise MissedError(f"'{group.tensor.name}' holds numbers that are not finite, or none")
        _refuse_shared(session, group)
        exponents = self._exponents(group, largest)
        if not exponents.any():
            raise MissedError("its channels are even already")
        normalisation = _normalisation(session, group)
        if normalisation is None and self.fold_only:
            raise MissedError("no normalisation takes the factors, and fold_only is set")
        _rewrite(session, group, normalisation, exponents)

    def _exponents(self, group: _Group, largest: Array) -> Array:
        """log2 of the factors s (K,)."""
        weights = np.zeros(group.width)
        for _, use in group.uses:
            held = use.values()
            for found in (held.max(axis=use.channels, initial=0.0), -held.min(axis=use.channels, initial=0.0)):
                np.maximum(weights, found, out=weights)
        if not np.isfinite(weights).all():
            raise MissedError("a weight holds numbers that are not finite")
        with np.errstate(divide="ignore"):
            wanted = self.alpha * np.log2(largest.astype(np.float64)) - (1 - self.alpha) * np.log2(weights)
        wanted[~np.isfinite(wanted)] = 0.0  # a channel that is never used
        return np.clip(np.rint(wanted), -_MOST_EXPONENT, _MOST_EXPONENT).astype(np.int64)


def _groups(session: PassSession) -> list[_Group]:
    """The products of the main graph, by the value that they multiply."""
    found: dict[int, _Group] = {}
    for graph in session.view.graphs():
        for node in graph.nodes:
            kind = op_key(node)
            if kind not in _PRODUCTS and kind != _ATTENTION:
                continue
            try:
                use, width = _use_of(node)
                if graph is not session.view.graph:
                    raise MissedError("it is in a body or a function, whose values calibration does not see")
            except MissedError as missed:
                session.reject(node, missed.reason)
                continue
            group = found.setdefault(id(node.inputs[0]), _Group(node.inputs[0], width=width))
            group.uses.append((node, use))
    return list(found.values())


def _use_of(node: Any) -> tuple[Use, int]:
    if op_key(node) == _ATTENTION:
        use = projection_of(node)
    else:
        product = product_of(node)
        if product.turns_a or product.use is None:
            raise MissedError("an operand is transposed, or the weight is no matrix")
        use = product.use
    if dtype_of(node.inputs[0]) != np.float32:
        raise MissedError(f"'{node.inputs[0].name}' is not float32")
    return use, int(use.values().shape[1 - use.channels])


def _refuse_shared(session: PassSession, group: _Group) -> None:
    """
    Raises:
        MissedError: what another node reads would change too, or be stored twice.
    """
    mine = {id(node) for node, _ in group.uses}
    mine |= {id(step) for _, use in group.uses for step in use.weight.steps}
    for _, use in group.uses:
        if session.editor.is_graph_output(use.weight.source):
            raise MissedError(f"the weight '{use.weight.name}' is an output of the model")
        for tensor in (use.weight.source, *(step.outputs[0] for step in use.weight.steps)):
            if any(id(reader) not in mine for reader in session.editor.consumers(tensor)):
                raise MissedError(f"the weight '{use.weight.name}' is read by another node too")


def _normalisation(session: PassSession, group: _Group) -> Any | None:
    """The normalisation that gives the value to the group alone, and whose scale and bias are constant."""
    node = producer(group.tensor)
    places = None if node is None else _GAMMAS.get(op_key(node))
    if node is None or places is None or node.outputs[0] is not group.tensor:
        return None
    mine = {id(user) for user, _ in group.uses}
    readers = session.editor.consumers(group.tensor)
    if session.editor.is_graph_output(group.tensor) or any(id(reader) not in mine for reader in readers):
        return None
    for place in places:
        if place >= len(node.inputs) or not node.inputs[place].name:
            continue
        array = constant_of(node.inputs[place])
        if array is None or array.dtype != np.float32 or array.shape != (group.width,):
            return None
    return node


def _rewrite(session: PassSession, group: _Group, normalisation: Any | None, exponents: Array) -> None:
    """Puts copies of the nodes in their place, with weights times s, and the normalisation or a Mul with 1/s."""
    added: list[Any] = []
    removed = [node for node, _ in group.uses]
    feeders = [use.weight.steps[0] for _, use in group.uses if use.weight.steps]
    operand: Value | None = None
    if normalisation is None:
        first = removed[0]
        op = _builder(session, first)
        operand = op.Mul(Value(group.tensor), op.constant(np.ldexp(np.float32(1), -exponents).astype(np.float32), "smooth"))
        session.editor.insert(op.nodes, first)
        added += op.nodes
    else:
        changed = {}
        for place in _GAMMAS[op_key(normalisation)]:
            if place < len(normalisation.inputs) and normalisation.inputs[place].name:
                old = normalisation.inputs[place]
                changed[place] = _constant(session, old.name, np.ldexp(np.asarray(constant_of(old)), -exponents))
        added += _copied(session, normalisation, changed)
        removed.insert(0, normalisation)
    weights: dict[Hashable, Value] = {}
    for node, use in group.uses:
        turned = bool(attribute(node, "transB", 0))
        key = use.weight.key, turned
        if key not in weights:
            factors = exponents[None, :] if turned else exponents[:, None]
            weights[key] = _constant(session, use.weight.name, np.ldexp(use.weight.values(), factors))
        added += _copied(session, node, {1: weights[key]} if operand is None else {0: operand, 1: weights[key]})
    unused = [step for step in dict.fromkeys(feeders) if not any(session.editor.is_used(tensor) for tensor in step.outputs)]
    stranded = session.editor.remove_with_dead_producers(unused)
    session.record(session.view.graph, [*removed, *stranded], added)


def _copied(session: PassSession, node: Any, changed: Mapping[int, Value]) -> list[Any]:
    """Puts a copy of the node in its place, with other inputs; returns it."""
    op = _builder(session, node)
    inputs = [changed.get(place) or (Value(tensor) if tensor.name else None) for place, tensor in enumerate(node.inputs)]
    given = tuple(bool(tensor.name) for tensor in node.outputs)
    getattr(op, node.op)(*inputs, domain=node.domain or "", outputs=given, **dict(node.attrs))
    session.editor.insert(op.nodes, node)
    session.editor.remove(node)
    made = op.nodes[-1]
    for place, tensor in enumerate(list(node.outputs)):
        if tensor.name:
            session.editor.take_output(tensor, made, place)
    return list(op.nodes)


def _builder(session: PassSession, node: Any) -> Builder:
    return Builder(session.names, scope_of(node), session.view.opset_of(session.view.graph))


def _constant(session: PassSession, name: str, array: Array) -> Value:
    return Value(make_constant(session.names.fresh(f"{name}_smooth"), np.ascontiguousarray(array, np.float32)))
