"""If and Loop with bodies that read what is around them, and calls of model-local functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, helper

from rewright.testing.strategies import activations, elementwise, layout, normalizations, products
from rewright.testing.strategies.writer import BOOL, INT64, LOCAL, Attributes, Part, Value, Writer

_DEPTH = 2


def body_parts() -> list[Part]:
    """What bodies and functions are made of."""
    rooms = (elementwise.PARTS, products.PARTS, normalizations.PARTS, activations.PARTS, layout.PARTS)
    return [part for room in rooms for part in room.values()]


def _filled(w: Writer, least: int = 1) -> None:
    parts = body_parts()
    for _ in range(w.some(least, 2)):
        w.values.append(w.pick(*parts)(w))


def branch(w: Writer) -> Value:
    """If over an input, a constant, or a comparison of sizes; a branch may be a value from outside alone."""
    if w.is_function:
        return elementwise.unary(w)
    condition = _condition(w)
    bodies = {}
    for name in ("then_branch", "else_branch"):
        inner = w.nested()
        _filled(inner, least=0)
        if w is w.root and w.rarely():
            inner.values.append(branch(inner))
        bodies[name] = inner.graph(name, [], [_own(inner)])
    if w.rarely():
        _name_alike(*bodies.values())
    return w.op("If", condition, kind=w.kind, dims=w.sizes.stream, **bodies)


def _name_alike(one: GraphProto, other: GraphProto) -> None:
    """Gives values of the second body names from the first: bodies side by side do not see each other."""
    names = ([name for node in body.node for name in node.output if name] for body in (one, other))
    renamed = {old: new for new, old in zip(*names, strict=False)}
    _rename(other, renamed)


def _rename(body: GraphProto, renamed: Mapping[str, str]) -> None:
    for value in body.output:
        value.name = renamed.get(value.name, value.name)
    for node in body.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, renamed)


def _condition(w: Writer) -> Value:
    form = w.pick("input", "constant", "sizes", "number")
    if form == "constant":
        return w.constant(w.chance(), BOOL)
    if form == "sizes":
        size = w.squeeze(w.size(w.read(), w.pick(1, 2)), 0)
        return w.op(w.pick("Greater", "Equal"), size, w.constant(w.pick(1, w.sizes.hidden), INT64), kind=BOOL)
    if form == "number":
        total = w.op("ReduceMax", w.root.values[0], kind=w.kind, dims=[], keepdims=0)
        return w.op("Greater", total, w.constant(0.5), kind=BOOL, dims=[])
    return w.input("flag", BOOL)


def _own(w: Writer) -> Value:
    """The body's result, by a node of its own: a value from outside cannot be an output of a body."""
    result = w.values[-1]
    if any(result.name in node.output for node in w.nodes):
        return result
    return w.op("Identity", result)


def loop(w: Writer) -> Value:
    """A value that is carried through a few rounds, which may be counted, ended early, and collected."""
    if w.is_function:
        return elementwise.unary(w)
    trips = w.constant(w.pick(2, 1, 3, 0), INT64) if w.chance() else w.squeeze(w.size(w.read(), 1), 0)
    carried = w.read()
    inner = w.nested()
    turn, condition = inner.fresh(INT64, []), inner.fresh(BOOL, [])
    state = inner.fresh(w.kind, w.sizes.stream)
    inner.values.append(state)
    _filled(inner, least=0)
    following = inner.op("Tanh", inner.commuted("Add", state, inner.values[-1]), dims=w.sizes.stream)
    going = inner.op("Less", turn, inner.constant(2, INT64), kind=BOOL, dims=[]) if inner.chance() else None
    again = going or inner.op("Identity", condition)
    collected = [inner.op("ReduceMean", following, dims=[], keepdims=0)] if inner.chance() else []
    body = inner.graph("round", [turn, condition, state], [again, following, *collected])
    result = w.fresh(w.kind, w.sizes.stream)
    gathered = [w.fresh(w.kind, [None]) for _ in collected]
    limit = trips if going is None or w.chance() else None
    w.nodes_of("Loop", [limit, w.pick(None, w.constant(True, BOOL)), carried], [result, *gathered], body=body)
    w.others.extend(gathered)
    return result


def call(w: Writer) -> Value:
    """One or two calls of a model-local function, perhaps with an attribute, perhaps of a function that calls another."""
    known = [function for function in w.root.functions if function.domain == LOCAL]
    if w.is_function and len(known) >= _DEPTH:
        return elementwise.unary(w)
    name, takes, has_attribute = _defined(w)
    result = w.read()
    for _ in range(w.some(1, 2)):
        attributes: Attributes = {"slope": w.pick(0.1, 0.5)} if has_attribute else {}
        others = [w.read() for _ in range(takes - 1)]
        result = w.op(name, result, *others, dims=w.sizes.stream, domain=LOCAL, **attributes)
    return result


def _defined(w: Writer) -> tuple[str, int, bool]:
    """Writes a function over stream values: its name, how many it takes, and whether it has an attribute."""
    inner = w.nested(is_function=True)
    taken = [inner.fresh(w.kind, w.sizes.stream) for _ in range(w.some(1, 2))]
    inner.values.extend(taken)
    _filled(inner)
    has_attribute = w.kind == 1 and w.rarely()
    if has_attribute:
        inner.values.append(inner.op("LeakyRelu", inner.values[-1]))
        attribute = AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope")
        inner.nodes[-1].attribute.append(attribute)
    name = f"block_{len(w.root.functions)}"
    w.root.functions.append(_function(w, name, taken, _own(inner), inner.nodes, ["slope"] if has_attribute else []))
    return name, len(taken), has_attribute


def _function(
    w: Writer, name: str, taken: Sequence[Value], result: Value, nodes: Sequence[NodeProto], attributes: list[str]
) -> FunctionProto:
    domains = dict.fromkeys(node.domain for node in nodes if node.domain)
    imports = [helper.make_opsetid("", w.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    inputs = [value.name for value in taken]
    return helper.make_function(LOCAL, name, inputs, [result.name], nodes, imports, attributes)


PARTS: dict[str, Part] = {"if": branch, "loop": loop, "function": call}
