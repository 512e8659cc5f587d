"""A small fluent builder of models: nodes by attribute access, operators, bodies, seeded weights, inferred outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Self

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from rewright.model.errors import UsageError
from rewright.registry.catalog import did_you_mean
from rewright.testing.builder_types import elem_type, infer_node, infer_outputs, number_dtype, type_of
from rewright.testing.handles import Node, Value
from rewright.testing.sources import DEFAULT_OPSET, complete, ir_version_for

Dims = Sequence[int | str | None]
_BODY_OUTPUTS: Final = {"If": ("then_branch", 0), "Loop": ("body", 1), "Scan": ("body", 0)}
"""Ops whose number of outputs is that of a body, less the outputs that the op keeps to itself."""


class GraphBuilder:
    """Builds a model node by node.

    .. code-block:: python

        g = GraphBuilder(opset=17)
        x = g.input("x", "float32", ["batch", 8])
        y = g.Relu(x @ g.weight(8, 8) + 0.5)
        g.output(y)
        model = g.model()

    ``g.Name(...)`` adds a node of that op and gives its output, or a tuple of them where it has several. Inputs are values of
    this builder or of one around it, None for an input that is left out, numbers (constants of the other operand's type) and
    arrays. Keyword arguments are attributes, but for ``domain``, ``name`` (of the node) and ``outputs`` (how many). Names that
    Python cannot write, and ops in lower case, go through ``g.op("name", ...)``.

    Args:
        opset: of the standard domain.
        ir_version: the first one that has the opset by default.
        seed: of the weights.
        name: of the graph.
        domains: versions of other domains; 1 for those that are not named.
    """

    def __init__(
        self,
        opset: int = DEFAULT_OPSET,
        *,
        ir_version: int | None = None,
        seed: int = 0,
        name: str = "graph",
        domains: dict[str, int] | None = None,
    ) -> None:
        self.opset = opset
        self.name = name
        self._ir_version = ir_version or ir_version_for(opset)
        self._seed = seed
        self._domains = dict(domains or {})
        self._parent: GraphBuilder | None = None
        self._names: dict[str, int] = {}
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._initializers: dict[str, TensorProto] = {}
        self._nodes: list[Node] = []
        self._drawn = 0

    def body(self, name: str = "body") -> Self:
        """A builder for a body of If, Loop or Scan; it may use the values of this one, and shares its names and its seed."""
        made = type(self)(self.opset, ir_version=self._ir_version, seed=self._seed, name=name)
        made._parent = self
        return made

    def input(self, name: str, dtype: Any = "float32", shape: Dims | None = None) -> Value:
        """A graph input; dimensions are sizes, symbols, or None. Without a shape not even the rank is stated.

        Raises:
            UsageError: the name is taken, or there is no such dtype.
        """
        value = Value(self, self._claimed(name), type_of(dtype, shape))
        self._inputs.append(value)
        return value

    def constant(self, value: Any, dtype: Any = None, name: str = "constant") -> Value:
        """An initializer. Python floats and lists of them are float32 by default, integers int64; arrays keep their dtype.

        Raises:
            UsageError: there is no such dtype, or it holds integers and the value does not.
        """
        array = np.asarray(value)
        if dtype is not None:
            converted = array.astype(_numpy_dtype(dtype))
            if converted.dtype.kind in "iub" and array.dtype.kind == "f" and not np.array_equal(converted, array):
                raise UsageError(f"{value} is no {converted.dtype}.", "Cast the other operand, or give a whole number.")
            array = converted
        elif not isinstance(value, (np.ndarray, np.generic)) and array.dtype == np.float64:
            array = array.astype(np.float32)
        made = Value(self, self._unique(name), type_of(array.dtype, array.shape))
        self._initializers[made.name] = _tensor(array, made.name)
        return made

    def weight(self, *shape: int, dtype: Any = "float32", scale: float | None = None, name: str = "weight") -> Value:
        """An initializer of seeded normal numbers, of deviation ``1 / sqrt(rows)`` by default: products keep their size."""
        root = self._root()
        root._drawn += 1
        scale = scale if scale is not None else 1.0 / float(np.sqrt(shape[0] if len(shape) > 1 else 1))
        numbers = scale * np.random.default_rng([root._seed, root._drawn]).standard_normal(shape)
        return self.constant(numbers, dtype, name)

    def output(self, value: Value, name: str | None = None, dtype: Any = None, shape: Dims | None = None) -> Value:
        """Makes a value a graph output, under another name if one is given; type and shape are inferred where not stated.

        Raises:
            UsageError: the name is taken.
        """
        if value.builder is not self:  # ONNX Runtime refuses a body that returns a value of the graph around it
            value = self.op("Identity", value)
        if name is not None and name != value.name:
            if value in (*self._inputs, *self._outputs) or value.name in self._initializers:
                value = self.op("Identity", value)
            value.name = self._claimed(name)
        if dtype is not None or shape is not None:
            value.type = type_of(dtype if dtype is not None else value.dtype, shape if shape is not None else value.shape)
            value.is_stated = True
        self._outputs.append(value)
        return value

    def op(self, op: str, *inputs: Any, domain: str = "", name: str = "", outputs: int | None = None, **attributes: Any) -> Any:
        """A node; see the class.

        Raises:
            UsageError: the standard domain has no such op at this opset, or an input is no value of this graph.
        """
        schema = self._schema(op, domain)
        values = [self._operand(value, index, inputs, schema) for index, value in enumerate(inputs)]
        wanted = outputs if outputs is not None else self._output_count(op, schema, attributes)
        made = [Value(self, self._unique(op.lower()), None) for _ in range(wanted)]
        node = Node(op, domain, name or self._unique(f"{op}_node"), values, made, attributes, schema)
        self._nodes.append(node)
        infer_node(node, self.opset, self.constants_in_sight())
        return made[0] if len(made) == 1 else tuple(made)

    def __getattr__(self, name: str) -> Any:
        if not name[:1].isupper():
            raise AttributeError(f"GraphBuilder has no '{name}'; ops in lower case go through op('{name}', ...)")

        def add(*inputs: Any, **arguments: Any) -> Any:
            return self.op(name, *inputs, **arguments)

        return add

    def model(self) -> ModelProto:
        """The model.

        Raises:
            UsageError: there is no output, or the type or rank of an output is neither stated nor inferred.
        """
        if self._parent is not None:
            raise UsageError("a body is not a model.", "Give it to a node: g.If(condition, then_branch=body, ...).")
        if not self._outputs:
            raise UsageError("the graph has no output.", "Call output(value) at least once.")
        imports = {"": self.opset, **self._domains}
        opset_imports = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
        proto = helper.make_model(self.graph(), opset_imports=opset_imports, ir_version=self._ir_version)
        complete(proto)
        infer_outputs(proto, {value.name for value in self._outputs if value.is_stated})
        return proto

    def graph(self) -> GraphProto:
        """The graph or body itself; outputs have the types that are known by now."""
        proto = GraphProto(name=self.name)
        proto.node.extend(node.proto() for node in self._nodes)
        proto.input.extend(value.info() for value in self._inputs)
        proto.output.extend(value.info() for value in self._outputs)
        proto.initializer.extend(self._initializers.values())
        return proto

    def constants_in_sight(self) -> dict[str, TensorProto]:
        """The initializers of this builder and of those around it."""
        around = self._parent.constants_in_sight() if self._parent is not None else {}
        return {**around, **self._initializers}

    @property
    def outputs(self) -> tuple[Value, ...]:
        """What ``output`` was called for."""
        return tuple(self._outputs)

    @property
    def depth(self) -> int:
        """0 for a graph, 1 for a body in it, and so on."""
        return 0 if self._parent is None else 1 + self._parent.depth

    def captures(self) -> dict[str, Value]:
        """The values that a body reads from the graphs around it, by name."""
        read = [value for node in self._nodes for value in node.reads()] + self._outputs
        return {value.name: value for value in read if value.builder.depth < self.depth}

    def _operand(self, value: Any, index: int, inputs: Sequence[Any], schema: onnx.defs.OpSchema | None) -> Value | None:
        if value is None:
            return None
        if not isinstance(value, Value):
            return self.constant(value, number_dtype(index, inputs, schema) if isinstance(value, (bool, int, float)) else None)
        owner: GraphBuilder | None = self
        while owner is not None and owner is not value.builder:
            owner = owner._parent
        if owner is None:
            raise UsageError(
                f"'{value.name}' belongs to another graph.", "A body sees the values around it, no graph those inside a body."
            )
        return value

    def _schema(self, op: str, domain: str) -> onnx.defs.OpSchema | None:
        if domain not in ("", "ai.onnx"):
            return None
        try:
            return onnx.defs.get_schema(op, self.opset, "")
        except onnx.defs.SchemaError:
            pass
        known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
        near = did_you_mean(op, sorted(known - {op}))
        raise UsageError(
            f"opset {self.opset} has no op '{op}'.",
            "Choose another opset." if op in known else f"{near} An op of another domain needs domain='...'.".lstrip(),
        )

    @staticmethod
    def _output_count(op: str, schema: onnx.defs.OpSchema | None, attributes: dict[str, Any]) -> int:
        if schema is None:
            return 1
        if op in _BODY_OUTPUTS:
            attribute, kept = _BODY_OUTPUTS[op]
            body = attributes.get(attribute)
            if isinstance(body, GraphBuilder):
                return len(body.outputs) - kept
        return max(1, schema.min_output)

    def _root(self) -> GraphBuilder:
        return self if self._parent is None else self._parent._root()

    def _claimed(self, name: str) -> str:
        if name in self._root()._names:
            raise UsageError(f"the name '{name}' is taken.", "Choose another.")
        return self._unique(name)

    def _unique(self, name: str) -> str:
        """The name itself if it is free, else with a number; bodies share the names, so that nothing is shadowed."""
        names = self._root()._names
        number = names.get(name, 0)
        names[name] = number + 1
        return self._unique(f"{name}_{number}") if number else name


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type(dtype)))


def _tensor(array: np.ndarray[Any, Any], name: str) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)  # which makes scalars rank 1
