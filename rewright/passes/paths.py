"""Whether one node may stand for a match that has several outputs, or whether it would have to wait for itself."""

from __future__ import annotations

from typing import Any

from rewright.model.edit import Editor
from rewright.model.order import node_has_bodies
from rewright.pattern.matcher import Attempt


class Paths:
    """Positions of the nodes of one graph during one sweep.

    A match with one output is always replaceable: nothing outside reads its interior. With several, a node outside may read
    one output and feed an input of the match. Such a path is searched from the outputs downwards, only as far as the
    latest input of the match, so that the search is short where the outputs' users come later anyway.
    """

    def __init__(self, editor: Editor, graph: Any) -> None:
        self._editor = editor
        self._position: dict[int, int] = {}
        self._outer: dict[int, Any] = {}
        self._spans: list[tuple[int, int]] = []
        for index, node in enumerate(graph.nodes):
            self._position[id(node)] = index
            if node_has_bodies(node):
                for body in node.subgraphs(recursive=True):
                    self._outer.update((id(inner), node) for inner in body.nodes)

    def last(self, attempt: Attempt) -> Any:
        """The matched node that comes last; what replaces the match can stand there."""
        return max((node for node, _ in attempt.nodes), key=self._of)

    def back_into(self, attempt: Attempt) -> Any | None:
        """A node outside the match on a path from an output of the match to an input of it, or None."""
        matched = {id(node) for node, _ in attempt.nodes}
        feeding = {id(f): f for node, _ in attempt.nodes for tensor in self._reads(node) for f in tensor.inputs}
        feeding = {key: feeder for key, feeder in feeding.items() if key not in matched}
        limit = self._limit(max(map(self._of, feeding.values()), default=-1))
        outputs = list(attempt.found.values())
        seen: set[int] = set(matched)
        while outputs:
            tensor = outputs.pop()
            for user in self._editor.consumers(tensor):
                node = self._outer.get(id(user), user)
                if id(node) in seen or self._of(node) > limit:
                    continue
                if id(node) in feeding:
                    return node
                seen.add(id(node))
                outputs.extend(node.outputs)
        return None

    def replaced(self, attempt: Attempt, made: list[Any]) -> None:
        """Remembers where the new nodes stand, and that the order within the match's span no longer tells who comes first."""
        matched = {id(node) for node, _ in attempt.nodes}
        positions = [self._of(node) for node, _ in attempt.nodes]
        for node in made:
            self._position[id(node)] = max(positions)
        users = (user for tensor in attempt.found.values() for user in self._editor.consumers(tensor))
        if any(self._of(self._outer.get(id(user), user)) < max(positions) for user in users if id(user) not in matched):
            self._spans.append((min(positions), max(positions)))

    def _of(self, node: Any) -> int:
        return self._position.get(id(node), -1)

    def _limit(self, position: int) -> int:
        """``position``, or the end of the spans that it falls into."""
        grown = True
        while grown:
            grown = False
            for first, last in self._spans:
                if first <= position < last:
                    position, grown = last, True
        return position

    def _reads(self, node: Any) -> list[Any]:
        tensors = list(node.inputs)
        if node_has_bodies(node):
            tensors += [tensor for body in node.subgraphs(recursive=True) for inner in body.nodes for tensor in inner.inputs]
        return tensors
