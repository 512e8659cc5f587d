"""An op taken for its sibling, and what may go wrong with the nodes beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from rewright.testing.mutants.spots import Spot

Change = Callable[[Spot], None]


def siblings_of(spot: Spot) -> Mapping[str, Change]:
    """The ops that it may be taken for, by name."""
    return {op.rpartition("::")[2]: change for op, change in _SIBLINGS.get(spot.op, {}).items()}


def beside(spot: Spot) -> Mapping[str, Change]:
    """What may go wrong with a node that stands beside a fused op, by name."""
    return _BESIDE.get(spot.op, {})


def _sibling(op: str, *, keep: Iterable[str] = (), without: Iterable[str] = ()) -> Change:
    """Turns the node into ``op`` with the attributes in ``keep`` and without the inputs in ``without``."""

    def change(spot: Spot) -> None:
        for name in without:
            if spot.index(name) is not None:
                spot.drop(name)
        for attribute in [item.name for item in spot.node.attribute]:
            if attribute not in keep:
                spot.set_attribute(attribute, None)
        spot.become(op)

    return change


def _skip_to_simplified(spot: Spot) -> None:
    """SkipSimplifiedLayerNormalization has no beta, so that the bias is its fourth input."""
    bias = spot.index("bias")
    held = spot.node.input[bias] if bias is not None else ""
    del spot.node.input[3:]
    if held:
        spot.node.input.append(held)
    spot.become("com.microsoft::SkipSimplifiedLayerNormalization")


_GELU, _FAST, _QUICK, _BIASED = (f"com.microsoft::{name}" for name in ("Gelu", "FastGelu", "QuickGelu", "BiasGelu"))
_SKIP, _SKIP_RMS = "com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization"
_NORM: Final = ("axis", "epsilon")
_SIBLINGS: Final[Mapping[str, Mapping[str, Change]]] = {
    "LayerNormalization": {"SimplifiedLayerNormalization": _sibling("SimplifiedLayerNormalization", keep=_NORM, without=("B",))},
    "SimplifiedLayerNormalization": {"LayerNormalization": _sibling("LayerNormalization", keep=_NORM)},
    "RMSNormalization": {"LayerNormalization": _sibling("LayerNormalization", keep=_NORM)},
    _SKIP: {_SKIP_RMS: _skip_to_simplified},
    _SKIP_RMS: {_SKIP: _sibling(_SKIP, keep=("epsilon",))},
    "Gelu": {_QUICK: _sibling(_QUICK), "Sigmoid": _sibling("Sigmoid"), "Relu": _sibling("Relu")},
    _GELU: {_FAST: _sibling(_FAST), _QUICK: _sibling(_QUICK), "Relu": _sibling("Relu")},
    _FAST: {
        _GELU: _sibling(_GELU, without=("bias",)),
        _BIASED: _sibling(_BIASED),
        _QUICK: _sibling(_QUICK, without=("bias",)),
        "Relu": _sibling("Relu", without=("bias",)),
    },
    _BIASED: {_FAST: _sibling(_FAST), _GELU: _sibling(_GELU, without=("B",)), "Add": _sibling("Add")},
    _QUICK: {_GELU: _sibling(_GELU), _FAST: _sibling(_FAST), "Sigmoid": _sibling("Sigmoid"), "Relu": _sibling("Relu")},
    "com.microsoft::GemmFastGelu": {"MatMul": _sibling("MatMul", without=("bias",))},
}


def _exchange_axes(spot: Spot) -> None:
    perm = list(spot.attribute("perm"))
    perm[-2], perm[-1] = perm[-1], perm[-2]
    spot.set_attribute("perm", perm)


def _third_for_result(spot: Spot) -> None:
    spot.node.input[0] = spot.node.input[2]
    spot.become_identity()


def _is_first(spot: Spot) -> None:
    spot.become_identity()


_BESIDE: Final[Mapping[str, Mapping[str, Change]]] = {
    "Where": {"the guard (Where) left out": _third_for_result},
    "Equal": {"the rows without a key (Equal) taken for the others": _sibling("Greater")},
    "ReduceMax": {"ReduceMax taken for ReduceMin": _sibling("ReduceMin", keep=("axes", "keepdims", "noop_with_empty_axes"))},
    "Max": {"the bound (Max) left out": _is_first},
    "Sub": {"the difference (Sub) left out": _is_first},
    "Mul": {"the product (Mul) taken for a sum": _sibling("Add")},
    "Cos": {"Cos taken for Sin": _sibling("Sin")},
    "Sin": {"Sin taken for Cos": _sibling("Cos")},
    "Transpose": {"the last axes of a Transpose exchanged": _exchange_axes},
}
