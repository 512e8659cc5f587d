"""What ``float16`` and ``bfloat16`` have in common: mixed precision that keeps in float32 what the narrow type cannot hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from rewright.model.graph import walk_bodies
from rewright.passes.contract import Site
from rewright.passes.coverage import Covered
from rewright.passes.precision.conversion import Conversion
from rewright.passes.precision.handing_over import hand_over
from rewright.passes.precision.islands import merge_islands
from rewright.passes.precision.keeping import Keeping, Limits, in_order, make_keeping
from rewright.passes.precision.operands import is_single
from rewright.passes.selection import Candidate, QuantizingPass
from rewright.passes.session import PassSession, label, op_key

_IN_A_FUNCTION = "it is in a function of the model; the pass inline-functions makes an ordinary node of it"
_NO_BOUNDS = "nobody has measured what values hold, so that nothing is known to fit"


class ReducedPrecision(QuantizingPass):
    """Base of the passes to a narrower floating-point type.

    Class facts:
        dtype: the type.
        least: what outputs have to keep where nobody says, as ``--budget`` reads it.
        cpu_note: what is said of a result for the target cpu.
    """

    exactness = "quantizing"
    edits_view = True
    retypes = True
    dtype: ClassVar[np.dtype[Any]]
    least: ClassVar[str] = ""
    cpu_note: ClassVar[str] = ""

    keep_io: bool = Field(default=True, description="Keep the model's inputs and outputs float32.")
    margin: float = Field(default=8.0, ge=1.0, description="How many times what was measured on inputs has to fit.")
    min_normal: bool = Field(default=True, description="Keep float32 where numbers fall below the smallest normal one.")
    clip_weights: bool = Field(default=False, description="Cut off weights that are too large, instead of keeping them.")

    @property
    def usual_budget(self) -> str:
        """What the type can keep; rounding to it is a small part of what 8 bits may lose."""
        return self.least

    @property
    def alters_interface(self) -> bool:
        """Whether the types of inputs and outputs change: float32 ones become narrow where ``keep_io`` is false."""
        return not self.keep_io

    def quantize(self, session: PassSession, candidates: Sequence[Candidate]) -> None:
        self._forget_others(session)
        main = session.view.graph
        graphs = [main, *walk_bodies(main)]
        inside = {id(graph) for graph in graphs}
        wanted = [each for each in candidates if _is_single(each.node)]
        if not wanted or self._is_without_bounds(session, wanted):
            return
        keeping = self._decided(session, graphs, [each.node for each in wanted if id(each.graph) in inside])
        nodes = [node for node in in_order(main) if keeping.roles[id(node)].is_choice]
        if self.backend == "ort":
            hand_over(session, keeping, nodes, [each for each in wanted if id(each.graph) in inside])
            return
        returned = {id(tensor) for graph in graphs for tensor in graph.outputs} - keeping.narrow_results
        merge_islands(keeping, nodes, returned)
        converted = [node for node in nodes if keeping.is_narrow(node)]
        labels = [label(node) for node in converted]
        conversion = Conversion(session, keeping)
        if converted:
            conversion.carry_out(graphs)
            self._record(session, conversion, converted, labels)
        self._cover(session, keeping, conversion, wanted, inside)
        self._tell(session, keeping, conversion, len(converted), len(nodes))

    def _is_without_bounds(self, session: PassSession, wanted: Sequence[Candidate]) -> bool:
        if session.bounds is not None:
            return False
        for each in wanted:
            session.coverage.append(Covered(label(each.node), op_key(each.node), "missed", reason=_NO_BOUNDS))
        return True

    def _forget_others(self, session: PassSession) -> None:
        """Drops what was said of nodes that hold no float32 and so are none of the pass's."""
        others = {label(node) for graph in session.view.graphs() for node in graph.nodes if not _is_single(node)}
        session.coverage[:] = [entry for entry in session.coverage if entry.node not in others]

    def _decided(self, session: PassSession, graphs: list[Any], wanted: Sequence[Any]) -> Keeping:
        found = session.bounds(session.view.to_model()) if session.bounds is not None else None
        if found is None:
            raise TypeError("no bounds")
        limits = Limits(self.dtype, session.target, self.margin, self.min_normal, self.clip_weights)
        # the converter of ONNX Runtime makes the lowest float16 of a mask, to which nothing can be added
        has_masks = self.backend != "ort"
        keeping = make_keeping(limits, found.values, graphs, session.view.opset_of(graphs[0]), has_masks=has_masks)
        if not self.keep_io:
            keeping.narrow_interface(graphs[0])
        chosen = set(map(id, wanted))
        for node in in_order(graphs[0]):
            if id(node) not in chosen:
                keeping.keep(node, "it was not chosen")
        if found.input_sets:
            session.notes.append(
                f"values were measured on {', '.join(found.input_sets)}; {self.margin:g} times as much has to fit"
            )
        session.notes.extend(f"could not be measured: {problem}" for problem in found.problems)
        return keeping

    def _record(self, session: PassSession, conversion: Conversion, converted: list[Any], labels: list[str]) -> None:
        """One site for all: no part of the change makes sense without the others, whose types it relies on."""
        gone = conversion.removed
        made = (*conversion.cuts, *conversion.casts)
        for cast in made:
            cast.metadata = {"rewright.pass": self.name, "rewright.replaces": ""}
        kept = [node for node in converted if getattr(node, "alive", True)]
        session.sites.append(
            Site(
                id=f"{self.name}#{len(session.sites)}",
                graph=session.view.graph.name or "",
                removed=(*labels, *(name for name in map(label, gone) if name not in set(labels))),
                added=tuple(map(label, (*kept, *made))),
                ops_removed=tuple(map(op_key, (*converted, *(node for node in gone if node not in set(converted))))),
                ops_added=tuple(map(op_key, (*kept, *made))),
                values=tuple(tensor.name for node in (*converted, *gone, *made) for tensor in node.outputs if tensor.name),
            )
        )

    def _cover(
        self,
        session: PassSession,
        keeping: Keeping,
        conversion: Conversion,
        wanted: Sequence[Candidate],
        inside: set[int],
    ) -> None:
        for each in wanted:
            name, op = label(each.node), op_key(each.node)
            if id(each.graph) not in inside:
                session.coverage.append(Covered(name, op, "missed", reason=_IN_A_FUNCTION))
                continue
            roles = keeping.roles[id(each.node)]
            if not keeping.is_narrow(each.node):
                reason = keeping.reasons.get(id(each.node)) or f"it computes in no {self.dtype.name}"
                if roles.is_choice or roles.obstacle:
                    session.coverage.append(Covered(name, op, "missed", reason=reason))
                continue
            rounded = conversion.constants.get(id(each.node), [])
            session.coverage.append(
                Covered(
                    name, op, "quantized", became=self.dtype.name,
                    weight=", ".join(item.name for item in rounded if item.error is not None),
                    bytes_before=sum(item.bytes_before for item in rounded),
                    bytes_after=sum(item.bytes_after for item in rounded),
                    error=max((item.error for item in rounded if item.error is not None), default=None),
                )
            )  # fmt: skip

    def _tell(self, session: PassSession, keeping: Keeping, conversion: Conversion, done: int, total: int) -> None:
        notes = session.notes
        if not done:
            notes.append(f"no node is left that would compute in {self.dtype.name}: the model is unchanged")
            return
        notes.append(
            f"{done} of {total} nodes compute in {self.dtype.name}, with {len(conversion.casts)} casts around the others"
        )
        if keeping.clipped:
            numbers = sum(count for _, count in keeping.clipped.values())
            held = ", ".join(tensor.name for tensor, _ in keeping.clipped.values())
            notes.append(f"{numbers} numbers of {held} were cut off at {keeping.limits.largest:.6g}")
        if keeping.reach.fillers:
            notes.append(
                f"{len(keeping.reach.fillers)} constants are nothing but masks; their lowest became {keeping.reach.filler:g}"
            )
        if conversion.cuts:
            count, least = len(conversion.cuts), keeping.reach.filler
            notes.append(f"{count} masks of float32 are cut off at {least:g} where attention reads them")
        if session.target == "cpu":
            notes.append(self.cpu_note)


def _is_single(node: Any) -> bool:
    """Whether the node reads or makes float32 values; a Constant node is what its readers make of it."""
    return node.op != "Constant" and any(tensor.name and is_single(tensor) for tensor in (*node.inputs, *node.outputs))
