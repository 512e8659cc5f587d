"""Passes written as a pattern, a check and a rewrite, and the engine that carries them out."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rewright.model.errors import PassError
from rewright.model.names import scope_of
from rewright.passes.contract import Pass, Target
from rewright.passes.paths import Paths
from rewright.passes.session import PassSession, op_key
from rewright.pattern.builder import Builder
from rewright.pattern.language import NodePattern, Traced, pattern_ops, root_ops, trace
from rewright.pattern.matcher import Attempt, NearMiss
from rewright.pattern.values import NodeRef, Value

_MOST_SOLUTIONS: Final = 32
_MOST_SWEEPS: Final = 16


class Refused(Exception):  # noqa: N818  (control flow, never seen by a user)
    """Raised by ``match.require``: the site does not qualify."""

    def __init__(self, reason: str, node: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node


class Match:
    """A place that fits the pattern, for ``check`` and ``rewrite``.

    Attributes:
        root: the node whose output is replaced.
        nodes: all matched nodes, the root first.
        target: where the model will run.
        opset: the version of the standard domain that the graph follows.
        proven: how many requirements held.
    """

    def __init__(self, attempt: Attempt, session: PassSession, graph: Any) -> None:
        self._attempt = attempt
        self._session = session
        self.root = NodeRef(attempt.nodes[0][0])
        self.nodes = [NodeRef(node) for node, _ in attempt.nodes]
        self.target: Target = session.target
        self.opset = session.view.opset_of(graph)
        self.proven = 0

    def __getitem__(self, name: str) -> Value:
        return Value(self._attempt.values[name])

    def get(self, name: str) -> Value | None:
        """The value bound to ``name``, or None if it was optional and is absent."""
        tensor = self._attempt.values.get(name)
        return None if tensor is None else Value(tensor)

    def node(self, name: str) -> NodeRef | None:
        """The node that the pattern named with ``bind=``, or None if that alternative was not taken."""
        found = self._attempt.named.get(name)
        return None if found is None else NodeRef(found)

    def the_node(self, name: str) -> NodeRef:
        """The node that the pattern named with ``bind=`` and that every alternative has."""
        return NodeRef(self._attempt.named[name])

    def require(self, holds: bool, reason: str, where: Value | NodeRef | None = None) -> None:
        """Refuses the site with ``reason`` unless ``holds``."""
        if holds:
            self.proven += 1
            return
        if isinstance(where, Value):
            raise Refused(f"{reason} ('{where.name}')", where.tensor.inputs[0] if where.tensor.inputs else self.root.node)
        raise Refused(reason, where.node if where is not None else self.root.node)

    def opset_obstacle(self, version: int) -> str | None:
        """Why the model can not be raised to ``version`` of the standard domain, or None if it can."""
        return self._session.opset_obstacle(version)

    def used_elsewhere(self, name: str) -> bool:
        """Whether something outside the match uses the output of the node named ``name``."""
        matched = {id(node) for node, _ in self._attempt.nodes}
        return _used_outside(self._session, self._attempt.named[name], matched)


class PatternPass(Pass):
    """Replaces each occurrence of a pattern.

    ``pattern(self, op, x, ...)`` describes the computation; its parameters are bindings. ``check(self, match, x, ...)`` proves
    what the pattern leaves open, with ``match.require``. ``rewrite(self, op, x, ...)`` builds the replacement and returns it.
    ``check`` and ``rewrite`` take whichever bindings they name; ``rewrite`` may also take ``match``. If ``pattern`` returns a
    tuple, the values after the first may be used elsewhere too, and ``rewrite`` returns a tuple that replaces them (None keeps
    one). They may lie below the first or be roots of their own that share a value with it.

    ``anchors`` are op types: each such node that no site consumed is reported with the reason.

    ``backwards`` tries the candidates from the last node to the first. Use it where the pattern's last steps are optional, so
    that the longest form is found before the shorter one inside it.
    """

    edits_view = True
    anchors: ClassVar[tuple[str, ...]] = ()
    backwards: ClassVar[bool] = False

    if TYPE_CHECKING:
        # Subclasses choose the parameters; this is the signature that type checkers let any other override.
        def pattern(self, *args: Any, **kwargs: Any) -> Any: ...
        def check(self, *args: Any, **kwargs: Any) -> None: ...
        def rewrite(self, *args: Any, **kwargs: Any) -> Any: ...
    else:

        def pattern(self, op):
            """The computation to look for."""
            raise PassError(f"the pass '{self.name}' has no pattern.", "Pass developer: define pattern(self, op, ...).")

        def check(self):
            """Refuses matches that do not qualify; by default none."""

        def rewrite(self, op):
            """The replacement."""
            raise PassError(f"the pass '{self.name}' has no rewrite.", "Pass developer: define rewrite(self, op, ...).")

    def apply(self, session: PassSession) -> None:
        session.ensure_facts()
        engine = _Engine(self, session)
        for _ in range(_MOST_SWEEPS):
            fired = engine.sweep()
            session.editor.finish()
            if not fired:
                break
        else:
            raise PassError(
                f"the pass '{self.name}' still fires after {_MOST_SWEEPS} sweeps over the model.",
                "Pass developer: what rewrite makes fits its own pattern; refuse it in check.",
            )
        engine.report()


@dataclass(frozen=True)
class _Plan:
    """What a pass with certain options is: its pattern, the ops of its root, all its ops, and its two other methods."""

    traced: Traced
    roots: frozenset[str]
    ops: frozenset[str]
    check: Callable[[Match, Builder | None], Any]
    rewrite: Callable[[Match, Builder | None], Any]


def _plan(current: PatternPass) -> _Plan:
    traced: Traced = trace(current.pattern, current.name)
    return _Plan(
        traced,
        root_ops(traced.root),
        pattern_ops((traced.root, *traced.exposed)),
        _caller(current.check, current.name, traced.names),
        _caller(current.rewrite, current.name, traced.names),
    )


_plan_once = lru_cache(maxsize=256)(_plan)


def _is_hashable(current: PatternPass) -> bool:
    try:
        hash(current)
    except TypeError:  # an option is a list or a dictionary
        return False
    return True


class _Engine:
    def __init__(self, current: PatternPass, session: PassSession) -> None:
        self._pass = current
        self._session = session
        plan = (_plan_once if _is_hashable(current) else _plan)(current)
        self._traced, self._roots, self._ops = plan.traced, plan.roots, plan.ops
        self._check, self._rewrite = plan.check, plan.rewrite
        self._targets = (self._traced.root, *self._traced.exposed)
        self._output = self._traced.root.output if isinstance(self._traced.root, NodePattern) else 0
        self._misses: dict[int, tuple[int, Any, str, Any]] = {}
        self._paths: Paths | None = None
        self._swept = False
        self._fresh_ops: set[str] = set()
        self._refused: set[int] = set()

    def sweep(self) -> int:
        """Tries every candidate once, in order; returns how many sites fired.

        After the first sweep, new nodes can complete a pattern only if it has ops of their kind, and removed ones only where
        a match was refused for what used its values; other candidates are not tried again.
        """
        fired = 0
        again = set(self._refused) if self._swept and not self._fresh_ops & self._ops else None
        if again is None:
            self._misses.clear()
        self._refused, self._fresh_ops = set(), set()
        if again is not None and not again:
            return 0
        for graph in list(self._session.view.graphs()):
            self._paths = Paths(self._session.editor, graph) if self._traced.exposed else None
            candidates = [node for node in graph.nodes if node.op in self._roots]
            if again is not None:
                candidates = [node for node in candidates if id(node) in again]
            for node in reversed(candidates) if self._pass.backwards else candidates:
                if getattr(node, "alive", True) and self._try(graph, node):
                    fired += 1
        self._swept = True
        return fired

    def _try(self, graph: Any, node: Any) -> bool:
        attempt = Attempt(self._session.editor, graph, self._targets)
        if len(node.outputs) <= self._output:
            return False
        best: tuple[int, Refused] | None = None
        solutions = attempt.solve_all(self._targets, node.outputs[self._output])
        for _, _solution in zip(range(_MOST_SOLUTIONS), solutions, strict=False):
            if not attempt.nodes:
                continue
            match = Match(attempt, self._session, graph)
            try:
                self._require_private(attempt)
                self._check(match, None)
                self._replace(graph, attempt, match)
            except Refused as refused:
                self._refused.add(id(node))
                if best is None or match.proven > best[0]:
                    best = (match.proven, refused)
                    self._miss(
                        NearMiss(tuple(n for n, _ in attempt.nodes), refused.reason, refused.node), node, 1000 + match.proven
                    )
                continue
            return True
        if best is None and attempt.near is not None:
            self._miss(attempt.near, node, len(attempt.near.nodes))
        return False

    def _miss(self, near: NearMiss, root: Any, weight: int) -> None:
        anchors = self._pass.anchors
        if anchors:
            keys = [node for node in near.nodes if node.op in anchors] or (
                [near.node] if near.node is not None and near.node.op in anchors else []
            )
        else:
            keys = [root] if weight > 1 else []
        for key in keys:
            held = self._misses.get(id(key))
            if held is None or weight > held[0]:
                self._misses[id(key)] = (weight, key, near.reason, near.node)

    def report(self) -> None:
        """Records a rejection for each anchor that is left, or for each near miss where the pass has no anchors."""
        anchors = self._pass.anchors
        if anchors:
            for graph in self._session.view.graphs():
                for node in graph.nodes:
                    if node.op in anchors and not node.domain and id(node) not in self._misses:
                        self._session.reject(node, f"no {'/'.join(sorted(self._roots))} completes the pattern around it")
        for _, key, reason, where in self._misses.values():
            if not getattr(key, "alive", True):
                continue
            at = f" at {where.op} '{where.name}'" if where is not None and where is not key else ""
            self._session.reject(key, reason + at)

    def _require_private(self, attempt: Attempt) -> None:
        matched = {id(node) for node, _ in attempt.nodes}
        exposed = {id(tensor) for tensor in attempt.found.values()}
        producers = {id(node) for tensor in attempt.found.values() for node in tensor.inputs}
        for node, pattern in attempt.nodes:
            if id(node) in producers:
                for output in node.outputs:
                    if output.name and id(output) not in exposed and _value_used_outside(self._session, output, matched):
                        raise Refused(f"the output '{output.name}' of {node.op} is used", node)
            elif not (pattern is not None and pattern.keep) and _used_outside(self._session, node, matched):
                raise Refused(f"the value '{node.outputs[0].name}' inside it is used elsewhere too", node)
        if self._paths is not None and (looping := self._paths.back_into(attempt)) is not None:
            raise Refused("an input of the match depends on an output of it, so that one node would need itself", looping)

    def _replace(self, graph: Any, attempt: Attempt, match: Match) -> None:
        session, editor = self._session, self._session.editor
        root = attempt.nodes[0][0]
        builder = Builder(session.names, scope_of(root), match.opset)
        try:
            result = self._rewrite(match, builder)
        except BaseException:
            editor.discard(builder.nodes)
            raise
        results = list(result) if isinstance(result, tuple) else [result]
        replaced = [attempt.found[id(target)] for target in self._targets]
        if len(results) > len(replaced):
            editor.discard(builder.nodes)
            raise PassError(
                f"rewrite of '{self._pass.name}' returned {len(results)} values for the {len(replaced)} of its pattern.",
                "Pass developer: return one value for each value that pattern returns, or None to keep one.",
            )
        for node in builder.nodes:
            reason = session.refusal(node)
            if reason is not None:
                editor.discard(builder.nodes)
                raise Refused(reason, root)
        results += [None] * (len(replaced) - len(results))
        doomed = self._doomed(attempt, replaced, results)
        at = self._paths.last(attempt) if self._paths is not None else root
        editor.insert(builder.nodes, at=at)
        if self._paths is not None:
            self._paths.replaced(attempt, builder.nodes)
        removed = list(doomed)
        for node in doomed:
            editor.remove(node)
        added = list(builder.nodes)
        self._fresh_ops.update(node.op for node in added)
        taken: dict[int, Any] = {}
        for old, new in zip(replaced, results, strict=True):
            if new is not None:
                added += self._substitute(old, new, at, builder, taken)
        feeders = [tensor.inputs[0] for node in doomed for tensor in node.inputs if tensor.inputs]
        removed += editor.remove_with_dead_producers(
            feeder for feeder in feeders if feeder.alive and not any(editor.is_used(tensor) for tensor in feeder.outputs)
        )
        session.record(graph, removed, added)

    def _doomed(self, attempt: Attempt, replaced: list[Any], results: list[Any]) -> list[Any]:
        """The matched nodes that go: all but those whose value is kept because something else uses it."""
        covered = {id(old) for old, new in zip(replaced, results, strict=True) if old is not None and new is not None}
        staying: set[int] = set()
        matched = {id(node): node for node, _ in attempt.nodes}
        for node in reversed(list(matched.values())):
            uncovered = [tensor for tensor in node.outputs if tensor.name and id(tensor) not in covered]
            used = any(
                self._session.editor.is_graph_output(tensor)
                or any(id(user) not in matched or id(user) in staying for user in self._users(tensor))
                for tensor in uncovered
            )
            if used:
                staying.add(id(node))
        for key in list(staying):  # what a staying node reads stays as well
            pending = [matched[key]]
            while pending:
                for tensor in pending.pop().inputs:
                    for feeder in tensor.inputs:
                        if id(feeder) in matched and id(feeder) not in staying and id(tensor) not in covered:
                            staying.add(id(feeder))
                            pending.append(feeder)
        return [node for node in matched.values() if id(node) not in staying]

    def _users(self, tensor: Any) -> list[Any]:
        return self._session.editor.consumers(tensor)

    def _substitute(self, old: Any, new: Value, at: Any, builder: Builder, taken: dict[int, Any]) -> list[Any]:
        """Lets ``new`` stand for ``old``: a fresh output takes its name and facts; an existing value gets its uses.

        ``taken`` remembers which value a fresh output has become, for a rewrite that returns it twice.
        """
        editor = self._session.editor
        for node in builder.nodes:
            for index, tensor in enumerate(node.outputs):
                if tensor is new.tensor and not editor.is_graph_output(tensor):
                    editor.take_output(old, node, index)
                    taken[id(tensor)] = old
                    return []
        self._fresh_ops |= self._ops  # old nodes become neighbours: every candidate is worth another try
        return editor.redirect(old, taken.get(id(new.tensor), new.tensor), at)


def _used_outside(session: PassSession, node: Any, matched: set[int]) -> bool:
    return any(_value_used_outside(session, tensor, matched) for tensor in node.outputs if tensor.name)


def _value_used_outside(session: PassSession, tensor: Any, matched: set[int]) -> bool:
    editor = session.editor
    return editor.is_graph_output(tensor) or any(id(user) not in matched for user in editor.consumers(tensor))


def _caller(function: Callable[..., Any], owner: str, names: tuple[str, ...]) -> Callable[[Match, Builder | None], Any]:
    """Calls ``check`` or ``rewrite`` with the bindings that its signature names."""
    parameters = list(inspect.signature(function).parameters)
    unknown = [name for name in parameters if name not in (*names, "match", "op")]
    if unknown:
        raise PassError(
            f"{function.__name__} of '{owner}' is defined as {function.__name__}(self, {', '.join(parameters)}).",
            f"Pass developer: {', '.join(unknown)} is not a parameter of pattern(self, op, {', '.join(names)}).",
        )

    def call(match: Match, builder: Builder | None) -> Any:
        special = {"match": match, "op": builder}
        return function(*(special[name] if name in special else match.get(name) for name in parameters))

    return call


__all__ = ["Match", "PatternPass", "Refused", "op_key"]
