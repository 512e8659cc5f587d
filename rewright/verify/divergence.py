"""Where two models that differ begin to differ: the first inner value that one computes otherwise than the other.

The search goes back from the outputs that differ, through the values that both models have, and stops at each that agrees. What
differs on the way without reaching an output (a mask that is spelled with another large number, and heals in the softmax) is so
left aside, and what is found is the beginning of a path on which everything that can be compared differs.

A rewrite may give a name to another value, and two exports may have one name by chance. Whether a value is to blame is therefore
tried: the candidate runs on with the reference's numbers in its place, and something behind it has to agree then.

Values of the main graph are compared; what happens in a body of If or Loop shows where it comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from rewright.model.carrier import Model
from rewright.model.regions import GraphIndex, reads
from rewright.passes.contract import Exactness
from rewright.verify.alignment import Value, same_numbers, same_place
from rewright.verify.comparison import OutputEvidence, QuantizationBudget, compare
from rewright.verify.inputs import InputSet
from rewright.verify.padding import without_padding
from rewright.verify.process import SessionWorker
from rewright.verify.seeds import pin_seeds
from rewright.verify.tolerance import Tolerance, is_floating, least_exact, tolerance_for
from rewright.verify.trace import Seen, Tracer

_MOST_TRIED: Final = 16
_FILLED: Final = 9e3
"""Magnitude from which on an element may be what a mask is filled with; the smallest in use is 1e4."""

Matching = Literal["name", "numbers", "position"]


class ValuePlace(BaseModel):
    """A value and the node that makes it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    node: str
    op: str


class ComparedValue(BaseModel):
    """A value of the reference, the one that stands for it in the candidate, and how far they are apart.

    `matched_by`: "name", both have it; "numbers", the candidate has the same numbers under this name; "position", it stands at
    the same place in the order of computation and is made by the same op.
    """

    model_config = ConfigDict(extra="forbid")

    reference: ValuePlace
    candidate: ValuePlace
    matched_by: Matching
    evidence: OutputEvidence


class Divergence(BaseModel):
    """Where the candidate begins to differ, on one input set.

    Attributes:
        input_set: the input set.
        outputs: the outputs that differ on it.
        first: the first value, in the reference's order of computation, from which what differs leads to such an output.
        last_agreeing: the last value on which `first` depends that agrees; None if only inputs and weights are before it.
        compared: how many values were compared.
        shared: how many of them both models have by name.
    """

    model_config = ConfigDict(extra="forbid")

    input_set: str
    outputs: list[str]
    first: ComparedValue
    last_agreeing: ComparedValue | None = None
    compared: int
    shared: int


def first_divergence(
    reference: Model,
    candidate: Model,
    input_set: InputSet,
    outputs: Sequence[str],
    worker: SessionWorker,
    *,
    exactness: Exactness = "reassociating",
    tolerance: Tolerance | None = None,
    trusts_names: bool = False,
) -> Divergence | None:
    """Where the candidate begins to differ from the reference.

    Args:
        reference, candidate: models that run on ``input_set`` and have these outputs.
        outputs: those that differ.
        exactness: what decides about the tolerance; ``tolerance`` takes its place for floating-point values.
        trusts_names: a name that both models have means the same in both, as it does before and after a pass. Otherwise a name
            may have been given anew, and the numbers of a value are looked for under other names too.

    Returns:
        None if none of the outputs is made by a node in both models, or none of them differs on this set.
    """
    search = _Search(reference, candidate, input_set, worker, exactness, tolerance)
    ends = [name for name in outputs if name in search.first.places and name in search.second.places]
    search.compare_by_name(ends)
    ends = [name for name in ends if name in search.pairs and not search.pairs[name].evidence.equal]
    if not ends:
        return None
    if not trusts_names:
        search.look_elsewhere(ends)
    return search.result(ends)


@dataclass
class _Pair:
    """The candidate's value that stands for one of the reference's."""

    name: str
    matched_by: Matching
    evidence: OutputEvidence


@dataclass
class _Search:
    reference: Model
    candidate: Model
    input_set: InputSet
    worker: SessionWorker
    exactness: Exactness
    tolerance: Tolerance | None
    pairs: dict[str, _Pair] = field(default_factory=dict)
    elsewhere: dict[str, _Pair] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = Tracer(pin_seeds(self.reference), self.input_set.arrays, self.worker)
        self.second = Tracer(pin_seeds(self.candidate), self.input_set.arrays, self.worker)
        self.seen: dict[str, Seen] = {}
        self.seen_in_candidate: dict[str, Seen] = {}
        self.shared = 0

    def compare_by_name(self, ends: Sequence[str]) -> None:
        """Compares what both models have by name, from the outputs back, until every path has come to a value that agrees."""
        in_candidate = set(self.second.behind(ends))
        names = [name for name in self.first.behind(ends) if name in in_candidate]
        while names:
            open_ends = self._walk(ends).reached.intersection(names)
            if not open_ends:
                break
            latest = max(open_ends, key=self.first.places.__getitem__)
            room = min(self.first.room(), self.second.room())
            end = names.index(latest) + 1
            part, names = names[max(0, end - room) : end], names[: max(0, end - room)]
            wanted, got = self.first.fetch(part), self.second.fetch(part)
            for name in part:
                if name in wanted and name in got:
                    self.seen[name], self.seen_in_candidate[name] = Seen.of(wanted[name]), Seen.of(got[name])
                    self.pairs[name] = _Pair(name, "name", self._judge(name, wanted[name], got[name]))
        self.shared = len(self.pairs)

    def look_elsewhere(self, ends: Sequence[str]) -> None:
        """Finds values of the reference under other names in the candidate, by their numbers or by their place."""
        values = _values(self.first, self.first.behind(ends), self.seen)
        others = _values(self.second, self.second.behind(ends), self.seen_in_candidate)
        self.pairs = {name: pair for name, pair in self.pairs.items() if name in ends or not self._is_namesake(name)}
        agreed = {name: pair.name for name, pair in self.pairs.items() if pair.evidence.equal}
        found = same_numbers((value for value in values if value.name not in agreed), others, self._agree)
        # A value that has another name in the candidate left its own to some other value of the reference. Where it did not,
        # the candidate computes it, and then something else that it calls so: the name says what differs.
        differing = [value for value in others if value.name in self.pairs and value.name not in agreed]
        renamed = same_numbers((value for value in differing if value.name not in ends), values, self._agree)
        self.pairs = {name: pair for name, pair in self.pairs.items() if name not in renamed}
        for name, other in found.items():
            (self.elsewhere if name in self.pairs else self.pairs)[name] = self._judged_sample(name, other, "numbers")
        settled = {name: pair.name for name, pair in self.pairs.items()}
        for name, other in same_place(values, others, settled).items():
            self.pairs[name] = self._judged_sample(name, other, "position")

    def _agree(self, one: Seen, other: Seen) -> bool:
        return self._judge("", one.sample, other.sample).equal

    def result(self, ends: Sequence[str]) -> Divergence:
        """The first value on a path of differing ones, and the last one behind it that agrees."""
        differing = sorted(self._walk(ends).reached.intersection(self.pairs), key=self.first.places.__getitem__)
        first = next((name for name in differing[:_MOST_TRIED] if self._mends(name, differing, ends)), differing[0])
        agreeing = self._walk([first]).agreeing
        last = max(agreeing, key=self.first.places.__getitem__, default=None)
        if first in self.elsewhere:
            before: ComparedValue | None = self._compared(first, self.elsewhere[first])
        else:
            before = None if last is None else self._compared(last, self.pairs[last])
        return Divergence(
            input_set=self.input_set.name,
            outputs=list(ends),
            first=self._compared(first, self.pairs[first]),
            last_agreeing=before,
            compared=len(self.pairs),
            shared=self.shared,
        )

    def _mends(self, name: str, differing: Sequence[str], ends: Sequence[str]) -> bool:
        """Whether something that differed agrees once the candidate has the reference's numbers for this value."""
        here = self.pairs[name].name
        reached = self.second.after(here)
        behind = [
            other for other in differing if other != name and self.pairs[other].name in reached and self.pairs[other].name != here
        ]
        if not behind:
            return name in ends
        right = self.first.fetch([name])
        asked = list(dict.fromkeys([*behind[:_MOST_TRIED], *(end for end in ends if end in behind)]))
        got = self.second.fetch([self.pairs[other].name for other in asked], {here: right[name]}) if right else {}
        wanted = self.first.fetch(asked) if got else {}
        places = ((other, self.pairs[other].name) for other in asked)
        return any(self._judge(one, wanted[one], got[two]).equal for one, two in places if one in wanted and two in got)

    def _is_namesake(self, name: str) -> bool:
        """Whether two values that differ have one name by chance: another op makes them, in another shape or type."""
        if self.pairs[name].evidence.equal:
            return False
        one, two = self.seen[name], self.seen_in_candidate[name]
        has_other_form = one.shape != two.shape or one.dtype != two.dtype
        return has_other_form and _place(self.first.index, name).op != _place(self.second.index, name).op

    def _walk(self, starts: Sequence[str]) -> _Walk:
        """Goes back from these values through all that does not agree."""
        found, pending = _Walk(), list(starts)
        while pending:
            name = pending.pop()
            if name in found.reached or name in found.agreeing or name not in self.first.places:
                continue
            pair = self.pairs.get(name)
            if pair is not None and pair.evidence.equal:
                found.agreeing.add(name)
                continue
            found.reached.add(name)
            pending += reads(self.first.index.nodes[self.first.places[name]])
        return found

    def _judge(self, name: str, wanted: np.ndarray, got: np.ndarray) -> OutputEvidence:
        tolerance = tolerance_for(wanted.dtype, self.exactness)
        if wanted.dtype != got.dtype and is_floating(wanted.dtype) and is_floating(got.dtype):
            # of another precision, which is no difference of an inner value
            exactness = least_exact([self.exactness, "reassociating"])
            tolerance = max((tolerance_for(array.dtype, exactness) for array in (wanted, got)), key=lambda known: known.rtol)
            wanted, got = np.asarray(wanted, np.float64), np.asarray(got, np.float64)
        if self.tolerance is not None and is_floating(wanted.dtype):
            tolerance = self.tolerance
        budget = QuantizationBudget() if self.exactness == "quantizing" else None
        judged = compare(name, wanted, got, tolerance, budget)
        if not judged.equal and name and wanted.shape == got.shape:
            excused = without_padding(self.reference.proto.graph, self.input_set, name, wanted.shape)
            if excused is not None:
                valid = compare(name, excused.select(wanted), excused.select(got), tolerance, budget)
                judged = valid if valid.equal else judged
        if judged.equal and is_floating(wanted.dtype) and wanted.shape == got.shape:
            judged = self._beside_fills(name, wanted, got, tolerance, budget) or judged
        judged.input_set = self.input_set.name
        return judged

    def _beside_fills(
        self, name: str, wanted: np.ndarray, got: np.ndarray, tolerance: Tolerance, budget: QuantizationBudget | None
    ) -> OutputEvidence | None:
        """The evidence of the elements that no mask has filled, if there are filled ones and these differ.

        One element of -3.4e38 lets the tolerance of all others, which follows the magnitude of the whole, grow beyond any error.
        """
        is_plain = np.abs(wanted) < _FILLED
        if is_plain.all() or not is_plain.any():
            return None
        plain = compare(name, wanted[is_plain], got[is_plain], tolerance, budget)
        plain.shape = list(got.shape)
        return None if plain.equal else plain

    def _judged_sample(self, name: str, other: str, matched_by: Matching) -> _Pair:
        one, two = self.seen[name], self.seen_in_candidate[other]
        is_whole = one.sample.size == int(np.prod(one.shape))
        shape = one.shape if is_whole else one.sample.shape
        evidence = self._judge("", one.sample.reshape(shape), two.sample.reshape(shape))
        evidence.name, evidence.shape = name, list(two.shape)
        if evidence.message and not is_whole:
            evidence.message = f"in a sample of {two.sample.size} elements, {evidence.message}"
        return _Pair(other, matched_by, evidence)

    def _compared(self, name: str, pair: _Pair) -> ComparedValue:
        return ComparedValue(
            reference=_place(self.first.index, name),
            candidate=_place(self.second.index, pair.name),
            matched_by=pair.matched_by,
            evidence=pair.evidence,
        )


@dataclass
class _Walk:
    """What is behind some values: those that were reached, and those that agree, where it stopped."""

    reached: set[str] = field(default_factory=set)
    agreeing: set[str] = field(default_factory=set)


def _values(tracer: Tracer, names: Sequence[str], seen: dict[str, Seen]) -> list[Value]:
    """These values as far as they can be seen, in order; what is not seen yet is added to ``seen``."""
    missing = [name for name in names if name not in seen]
    while missing:
        part, missing = missing[: tracer.room()], missing[tracer.room() :]
        seen.update((name, Seen.of(array)) for name, array in tracer.fetch(part).items())
    return [Value(name, _place(tracer.index, name).op, seen[name]) for name in names if name in seen]


def _place(index: GraphIndex, name: str) -> ValuePlace:
    node = index.node_of(name)
    if node is None:
        return ValuePlace(name=name, node="", op="")
    op = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return ValuePlace(name=name, node=node.name, op=op)
