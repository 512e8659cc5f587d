"""Searches where each trial is expensive: the first prefix that fails, and the fewest members that have to go.

Both are delta debugging (Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input", 2002) turned round: what
passes grows until one more member makes it fail. Every answer is a pair of trials that were run, a set that passes and the same
set with one member more that fails, so that nothing is concluded from an assumption about how members act together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Members = frozenset[int]


def first_failing_prefix(count: int, fails: Callable[[int], bool]) -> int:
    """The length of a prefix that fails while the prefix that is one shorter passes; about log2(count) trials.

    If failing prefixes stay failing when they grow, it is the shortest one that fails.

    Args:
        count: length of the whole, 1 or more; known to fail. The empty prefix is known to pass.
        fails: whether the prefix of a length fails; never asked about 0 or ``count``, nor twice about one length.

    Raises:
        ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError("there is no prefix of nothing that fails")
    passing, failing = 0, count
    while failing - passing > 1:
        middle = (passing + failing) // 2
        if fails(middle):
            failing = middle
        else:
            passing = middle
    return failing


def minimal_failing_set(count: int, fails: Callable[[Members], bool], budget: int) -> Members:
    """The members that have to be undone for the rest to pass, as few as were found within the budget.

    One culprit among n costs about log2(n) + 1 trials, each further one as much or less. Members that fail only together cost
    a second look, after which the side that has fewer members is undone. When the budget is spent, everything goes that was
    not seen to pass; that may be all of it.

    Args:
        count: members are 0 to ``count - 1``.
        fails: whether it fails with only these members applied; known to hold for all of them and not for none of them.
        budget: trials at most; one set is never tried twice.

    Returns:
        U, never empty, such that the members outside U pass together.

    Raises:
        ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError("nothing is applied, so that nothing can fail")
    trials = _Trials(count, fails, budget)
    undone = trials.everything - trials.largest_passing(range(count))
    if len(undone) == 1:  # none is fewer, and keeping all of them fails
        return undone
    # A member that fails alone has to go. One that fails only beside others may be the wrong one of them: taken in first, it
    # shows whether one of those others is what all of them fail with.
    culprits = [member for member in sorted(undone) if trials.fail(frozenset({member}))]
    accomplices = sorted(undone.difference(culprits))
    if accomplices and trials.left:
        order = [*accomplices, *sorted(trials.everything - undone), *culprits]
        again = trials.everything - trials.largest_passing(order)
        undone = min(undone, again, key=len)
    return undone


@dataclass
class _Trials:
    """What was tried, with what result."""

    count: int
    fails: Callable[[Members], bool]
    left: int
    known: dict[Members, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.everything: Members = frozenset(range(self.count))
        self.known |= {self.everything: True, frozenset(): False}

    def fail(self, members: Members) -> bool:
        """Whether it fails with these members; yes, when nothing can be tried any more."""
        if members not in self.known:
            if self.left <= 0:
                return True
            self.left -= 1
            self.known[members] = self.fails(members)
        return self.known[members]

    def largest_passing(self, order: Sequence[int]) -> Members:
        """Takes the members in this order and leaves out each with which what was kept so far fails."""
        kept: Members = frozenset()
        stride = len(order)
        while order and self.fail(kept.union(order)):
            # Culprits often stand together, so that the next is looked for first as near as the last one was.
            passing, failing = 0, min(stride, len(order))
            while failing < len(order) and not self.fail(kept.union(order[:failing])):
                passing, failing = failing, min(2 * failing, len(order))
            while failing - passing > 1:
                middle = (passing + failing) // 2
                if self.fail(kept.union(order[:middle])):
                    failing = middle
                else:
                    passing = middle
            kept = kept.union(order[:passing])
            order = order[failing:]
            stride = max(1, passing)
        return kept.union(order)
