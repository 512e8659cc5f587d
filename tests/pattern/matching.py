"""What the tests of patterns share: passes made of three functions, and attempts to match one node."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

from rewright.model import facts
from rewright.model.edit import Editor
from rewright.model.load import load
from rewright.model.view import View
from rewright.passes.pattern_pass import PatternPass
from rewright.passes.session import PassSession
from rewright.pattern.language import trace
from rewright.pattern.matcher import Attempt

HEADER = '<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1, "custom" : 1]> g '


def view(body: str, signature: str = "(float[2,3] x, float[2,3] z) => (float[2,3] y)", inner: str = "", **constants: Any) -> View:
    proto = onnx.parser.parse_model(f"{HEADER} {signature} {inner} {{ {body} }}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    opened = View(load(proto))
    facts.ensure(opened)
    return opened


def attempt(pattern: Callable[..., Any], opened: View, output: str = "y") -> tuple[Attempt, list[dict[str, str]]]:
    """The attempt to match ``pattern`` at a value of the main graph, and the bindings of each solution."""
    traced = trace(pattern, "test")
    made = Attempt(Editor(opened), opened.graph, (traced.root, *traced.exposed))
    tensor = next(t for node in opened.graph.nodes for t in node.outputs if t.name == output)
    found = []
    for _ in made.solve_all((traced.root, *traced.exposed), tensor):
        found.append({name: value.name for name, value in made.values.items()})
    assert (made.values, made.named, made.nodes, made.found) == ({}, {}, [], {})  # the search cleans up behind itself
    return made, found


def bindings(pattern: Callable[..., Any], body: str, **options: Any) -> dict[str, str] | None:
    """The first solution's bindings at ``y``, or None."""
    _, found = attempt(pattern, view(body, **options))
    return found[0] if found else None


def reason(pattern: Callable[..., Any], body: str, **options: Any) -> str:
    """Why the nearest attempt failed."""
    made, found = attempt(pattern, view(body, **options))
    assert not found
    assert made.near is not None
    return made.near.reason


def make_pass(find: Callable[..., Any], make: Callable[..., Any], prove: Callable[..., None] | None = None) -> PatternPass:
    """A pass of these functions, which lack ``self``."""
    namespace: dict[str, Any] = {"__module__": __name__, "name": "test-pass", "pattern": _method(find), "rewrite": _method(make)}
    if prove is not None:
        namespace["check"] = _method(prove)
    made: type[PatternPass] = type(PatternPass)("TestPass", (PatternPass,), namespace)
    return made()


def _method(function: Callable[..., Any]) -> Any:
    def method(_self: Any, *args: Any) -> Any:
        return function(*args)

    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [own, *inspect.signature(function).parameters.values()]
    method.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    method.__name__ = "rewrite"
    return method


def rewritten(current: PatternPass, opened: View) -> tuple[PassSession, list[str]]:
    """The session after the pass, and the nodes as "y = Op(x,z)"."""
    session = PassSession(current, opened.model, opened=opened)
    current.apply(session)
    made = opened.to_model().proto
    return session, [f"{','.join(node.output)} = {node.op_type}({','.join(node.input)})" for node in made.graph.node]
