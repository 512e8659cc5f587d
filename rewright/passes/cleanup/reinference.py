"""Keeping shape facts up to date while a pass walks a graph: inference again, node by node, behind what became better known."""

from __future__ import annotations

from typing import Any

from rewright.model.edit import domain_of
from rewright.model.facts import infer_outputs, shape_of
from rewright.model.view import MADE_UP_SYMBOL
from rewright.passes.cleanup.attributes import attribute_protos


class Reinference:
    """Repeats onnx's inference for the nodes behind improved values. One walk in topological order then knows what a second
    inference of the whole model would, and a pass needs no second run."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._improved: dict[int, Any] = {}  # with the values themselves, so that no other gets their identity

    def note(self, tensor: Any) -> None:
        """More is known about the value than when the model was inferred."""
        self._improved[id(tensor)] = tensor

    def visit(self, node: Any) -> None:
        """Infers the node's outputs again, if an input has improved."""
        if not self._improved or domain_of(node) or not any(id(tensor) in self._improved for tensor in node.inputs):
            return
        if attribute_protos(node) is None:
            return
        before = [(tensor, shape_of(tensor)) for tensor in node.outputs if tensor.name]
        if not any(shape is None or any(map(is_vague, shape)) for _, shape in before):
            return
        for tensor, shape in before:
            if shape is not None:
                tensor.shape = [None if is_vague(dim) else dim for dim in shape]
        infer_outputs(node, self._opset)
        given = {dim for tensor in node.inputs for dim in shape_of(tensor) or ()}
        for tensor, shape in before:
            now = shape_of(tensor)
            if now is None:
                continue
            known = shape if shape is not None and len(shape) == len(now) else (None,) * len(now)
            # Symbols that this inference made up mean nothing outside it; the model-wide one's do.
            tensor.shape = [
                old if new is None or (is_vague(new) and new not in given) else new for old, new in zip(known, now, strict=True)
            ]
            if tuple(tensor.shape) != shape:
                self.note(tensor)


def is_vague(dim: Any) -> bool:
    """Whether the dimension is unknown, or has a name that inference made up."""
    return dim is None or (isinstance(dim, str) and dim.startswith(MADE_UP_SYMBOL))
