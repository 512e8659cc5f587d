"""What quantizing passes have in common: which nodes are chosen, and why the others are not."""

from __future__ import annotations

import difflib
import fnmatch
import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field, field_validator

from rewright.model.errors import SelectionError
from rewright.model.graph import state_of
from rewright.passes.coverage import Covered
from rewright.passes.graph_pass import GraphPass
from rewright.passes.session import PassSession, label, op_key

_REGEX = "re:"


@dataclass(frozen=True)
class Candidate:
    """A node that a quantizing pass is for, and the graph, body or function that holds it."""

    graph: Any
    node: Any


class QuantizingPass(GraphPass):
    """Base of the passes that quantize nodes: selection by op, name and pattern, and a record of each node.

    Class facts:
        quantizes: the ops that the pass is for, as "MatMul" or "com.microsoft::Attention".

    ``nodes`` and ``exclude`` hold names of nodes, patterns with ``*`` and ``?``, or regular expressions after "re:". One that
    fits no node of the model ends the run, with near names: nothing is left out in silence.
    """

    exactness = "quantizing"
    quantizes: ClassVar[tuple[str, ...]] = ()

    operators: tuple[str, ...] = Field(default=(), description="Ops to quantize, of those that the pass is for; all by default.")
    nodes: tuple[str, ...] = Field(default=(), description="Nodes to quantize: names or patterns; all by default.")
    exclude: tuple[str, ...] = Field(default=(), description="Nodes to leave as they are: names or patterns.")

    @property
    def usual_budget(self) -> str:
        """What outputs may lose where nobody says, as ``--budget`` reads it; empty for the default, which is for 8 bits."""
        return ""

    @field_validator("operators")
    @classmethod
    def _operators_known(cls, operators: tuple[str, ...]) -> tuple[str, ...]:
        short = {op.rpartition("::")[2]: op for op in cls.quantizes}
        for op in operators:
            if op not in cls.quantizes and op not in short:
                near = difflib.get_close_matches(op, [*short, *cls.quantizes], n=3)
                hint = f"did you mean {', '.join(near)}?" if near else f"it quantizes {', '.join(cls.quantizes)}"
                raise ValueError(f"the pass {cls.name} does not quantize {op} ({hint})")
        return operators

    @field_validator("nodes", "exclude")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if pattern.startswith(_REGEX):
                try:
                    re.compile(pattern.removeprefix(_REGEX))
                except re.error as error:
                    raise ValueError(f"'{pattern}' is no regular expression: {error}") from error
        return patterns

    def run(self, session: PassSession) -> None:
        session.ensure_facts()
        self.quantize(session, self.chosen(session))
        self._tell_of_defaults(session)

    def _tell_of_defaults(self, session: PassSession) -> None:
        graph = session.view.graph
        defaults = sorted(state_of(graph).input_defaults.keys() & {tensor.name for tensor in graph.inputs})
        if defaults:
            session.notes.append(
                f"{len(defaults)} inputs have a default that callers may replace, such as '{defaults[0]}': no constants, and left"
                " as they are; take them from the inputs where nobody does"
            )

    @abstractmethod
    def quantize(self, session: PassSession, candidates: Sequence[Candidate]) -> None:
        """Quantizes what can be of the chosen nodes, and appends a ``Covered`` to ``session.coverage`` for each of them."""

    def chosen(self, session: PassSession) -> list[Candidate]:
        """The nodes to quantize, in order, bodies included; those that are excluded are recorded as such.

        Raises:
            SelectionError: a pattern fits no node.
        """
        everything = [Candidate(graph, node) for graph in list(session.view.graphs()) for node in graph.nodes]
        names = [label(each.node) for each in everything]
        wanted, left_out = _fitting("nodes", self.nodes, names), _fitting("exclude", self.exclude, names)
        found = []
        for candidate in everything:
            op, name = op_key(candidate.node), label(candidate.node)
            if op not in self.quantizes or (self.operators and not {op, op.rpartition("::")[2]}.intersection(self.operators)):
                continue
            if self.nodes and name not in wanted:
                continue
            if name in left_out:
                session.coverage.append(Covered(name, op, "excluded", reason=f"excluded by '{left_out[name]}'"))
            else:
                found.append(candidate)
        return found


def _fitting(option: str, patterns: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Which names the patterns fit, each with the first that does.

    Raises:
        SelectionError: one of them fits none.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        fits = list(_matches(pattern, names))
        if not fits:
            near = difflib.get_close_matches(pattern.removeprefix(_REGEX).strip("*"), names, n=3, cutoff=0.4)
            hint = f"Near names: {', '.join(near)}." if near else "`rewright explain` lists the nodes of a model."
            raise SelectionError(f"'{pattern}' in {option} fits no node of the model.", hint)
        for name in fits:
            found.setdefault(name, pattern)
    return found


def _matches(pattern: str, names: Iterable[str]) -> Iterator[str]:
    if pattern.startswith(_REGEX):
        expression = re.compile(pattern.removeprefix(_REGEX))
        return (name for name in names if expression.search(name))
    known = set(names)
    if pattern in known:  # a name may hold brackets, which a pattern would read as a choice
        return iter((pattern,))
    return (name for name in names if fnmatch.fnmatchcase(name, pattern))
