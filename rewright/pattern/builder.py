"""``op`` in a rewrite function: makes the new nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rewright.model.elements import make_constant, make_node, make_variable
from rewright.model.errors import PassError
from rewright.model.names import Names
from rewright.pattern.values import Value
from rewright.shapes.inference import infer_node


class Builder:
    """Makes nodes that are registered with their inputs but not yet in any graph.

    ``op.Name(x, y, None, domain="com.microsoft", epsilon=1e-5)`` returns the first output as a Value; ``outputs=3`` returns a
    tuple, as does ``outputs=(True, False, True)``, which omits the second output (its Value has the name ""). None is an
    omitted input, and one at the end is not listed; an attribute that is None is left out.
    """

    def __init__(self, names: Names, scope: str, opset: int) -> None:
        self._names = names
        self._scope = scope
        self.opset = opset
        self.nodes: list[Any] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *inputs, **options: self._make(name, inputs, options)

    def _make(self, op: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        domain = options.pop("domain", "")
        outputs = options.pop("outputs", 1)
        given = outputs if isinstance(outputs, tuple) else (True,) * outputs
        listed = max((place for place, item in enumerate(inputs, 1) if item is not None), default=0)
        name = options.pop("name", None) or self._names.fresh(f"{self._scope}/{op}" if self._scope else op)
        made = [make_variable(self._names.fresh(f"{name}_output_{index}") if kept else "") for index, kept in enumerate(given)]
        node = make_node(op, name, domain, [self._input(op, item) for item in inputs[:listed]], made)
        node.attrs = {key: value for key, value in options.items() if value is not None}
        self.nodes.append(node)
        infer_node(node, self.opset)
        values = tuple(Value(tensor) for tensor in made)
        return values[0] if outputs == 1 else values

    def _input(self, op: str, item: Any) -> Any:
        if item is None:
            return make_variable("")
        if isinstance(item, Value):
            return item.tensor
        raise PassError(
            f"op.{op} got the input {item!r}.",
            "Pass developer: inputs are bound values, results of op, op.constant(array), or None.",
        )

    def constant(self, array: Any, name: str = "constant") -> Value:
        """A new constant. ``array`` keeps its dtype."""
        base = f"{self._scope}/{name}" if self._scope else name
        return Value(make_constant(self._names.fresh(base), np.asarray(array)))
