"""Where two models that differ begin to differ: the first inner value that one computes otherwise than the other.

The search goes back from the outputs that differ, through the values that both models have, and stops at each that agrees. What
differs on the way without reaching an output (a mask that is spelled with another large number, and heals in the softmax) is so
left aside, and what is found is the beginning of a path on which everything that can be compared differs.

A rewrite may give a name to another value, and two exports may have one name by chance. Whether a value is to blame is therefore
tried: the candidate runs on with the reference's numbers in its place, and something behind it has to agree then. Where both
models do the same to inputs that agree within the tolerance, and the results do not, a smaller difference is looked for.

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
from rewright.verify.comparison import OutputEvidence
from rewright.verify.inner_values import InnerJudge, is_same_step
from rewright.verify.inputs import InputSet
from rewright.verify.process import SessionWorker
from rewright.verify.seeds import pin_seeds
from rewright.verify.tolerance import Tolerance
from rewright.verify.trace import Seen, Tracer

_MOST_TRIED: Final = 16
_STRICTNESS: Final = (1.0, 0.3, 0.1, 0.03, 0.01)
"""Shares of the tolerance, tried in turn while what is found only enlarges a smaller difference."""

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
    judges = [InnerJudge(reference.proto.graph, input_set, exactness, tolerance, strictness) for strictness in _STRICTNESS]
    found = None
    for judge in judges:
        search = _Search(reference, candidate, input_set, worker, judge)
        result = search.run(outputs, trusts_names)
        found = found or result
        if result is None:
            break
        if not search.is_innocent(result):
            return result
    return found


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
    judge: InnerJudge
    pairs: dict[str, _Pair] = field(default_factory=dict)
    elsewhere: dict[str, _Pair] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = Tracer(pin_seeds(self.reference), self.input_set.arrays, self.worker)
        self.second = Tracer(pin_seeds(self.candidate), self.input_set.arrays, self.worker)
        self.seen: dict[str, Seen] = {}
        self.seen_in_candidate: dict[str, Seen] = {}
        self.shared = 0

    def run(self, outputs: Sequence[str], trusts_names: bool) -> Divergence | None:
        """See ``first_divergence``."""
        ends = [name for name in outputs if name in self.first.places and name in self.second.places]
        self.compare_by_name(ends)
        ends = [name for name in ends if name in self.pairs and not self.pairs[name].evidence.equal]
        if not ends:
            return None
        if not trusts_names:
            self.look_elsewhere(ends)
        return self.result(ends)

    def is_innocent(self, found: Divergence) -> bool:
        """Whether both models do the same at the divergence, to inputs that agree: it enlarges a difference that was there."""
        old = self.first.index.node_of(found.first.reference.name)
        new = self.second.index.node_of(found.first.candidate.name)
        if old is None or new is None or not is_same_step(old, new):
            return False
        return all(self._is_same_input(one, two) for one, two in zip(old.input, new.input, strict=True))

    def _is_same_input(self, one: str, two: str) -> bool:
        constants = self.first.index.constants.get(one), self.second.index.constants.get(two)
        if constants[0] is not None and constants[1] is not None:
            values = self.first.model.tensor(constants[0]), self.second.model.tensor(constants[1])
            return values[0].dtype == values[1].dtype and np.array_equal(*values)
        pair = self.pairs.get(one)
        if pair is None:
            return one == two and one not in self.first.places
        return pair.name == two and pair.evidence.equal

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
                    self.pairs[name] = _Pair(name, "name", self.judge.evidence(name, wanted[name], got[name]))
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
        return self.judge.evidence("", one.sample, other.sample).equal

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
        return any(self.judge.evidence(one, wanted[one], got[two]).equal for one, two in places if one in wanted and two in got)

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

    def _judged_sample(self, name: str, other: str, matched_by: Matching) -> _Pair:
        one, two = self.seen[name], self.seen_in_candidate[other]
        is_whole = one.sample.size == int(np.prod(one.shape))
        shape = one.shape if is_whole else one.sample.shape
        evidence = self.judge.evidence("", one.sample.reshape(shape), two.sample.reshape(shape))
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
