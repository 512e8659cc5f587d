"""Ordering constraints between the passes of one chain: solved (levels), checked (a user's chain) and completed.

A chain may hold a pass more than once, so a constraint is about first times: `X.after = ("y",)` holds when y has run at
least once before any x, and `Y.before = ("x",)` says the same. Names that the chain does not hold constrain nothing.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rewright.model.errors import UsageError

if TYPE_CHECKING:
    from rewright.passes.contract import Pass


class Constraint(NamedTuple):
    """`earlier` must stand before `later` (indices into a chain), because `wish` of a pass says so."""

    earlier: int
    later: int
    wish: str


def solve(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """Sort passes so that every constraint holds; what no constraint touches keeps its place in line.

    Raises:
        UsageError: the constraints form a cycle; the message prints it.
    """
    constraints = list(_constraints(passes))
    refuse_cycle(passes)
    # what is the same pass keeps its order: two configurations of one pass are not interchangeable
    last_seen: dict[str, int] = {}
    for index, step in enumerate(passes):
        if step.name in last_seen:
            constraints.append(Constraint(last_seen[step.name], index, ""))
        last_seen[step.name] = index
    return tuple(passes[index] for index in _sorted(len(passes), constraints))


def violations(passes: Sequence[Pass]) -> tuple[str, ...]:
    """One sentence for each wish that the given order does not grant; the order itself is left alone.

    Raises:
        UsageError: no order could grant all of them, because they form a cycle.
    """
    refuse_cycle(passes)
    broken = (c for c in _constraints(passes) if c.earlier > c.later)
    return tuple(dict.fromkeys(f"{c.wish}, but runs the other way round in this chain" for c in broken))


def refuse_cycle(passes: Sequence[Pass]) -> None:
    """Raise UsageError with the cycle (`a -> b -> a`, each running before the next) if constraints contradict."""
    constraints = list(_constraints(passes))
    settled = set(_sorted(len(passes), constraints))
    stuck = {c.later: c for c in constraints if c.earlier not in settled and c.later not in settled}
    if not stuck:
        return
    # every entry has a predecessor among the stuck ones, so walking back must come round
    walk, seen = [next(iter(stuck))], set[int]()
    while walk[-1] not in seen:
        seen.add(walk[-1])
        walk.append(stuck[walk[-1]].earlier)
    cycle = walk[walk.index(walk[-1]) :][::-1]
    wishes = dict.fromkeys(stuck[later].wish for later in cycle[1:])
    raise UsageError(
        f"no order suits these passes: {' -> '.join(passes[index].name for index in cycle)} ({'; '.join(wishes)}).",
        "Leave one of them out of the chain, or run them in two runs.",
    )


def with_required(passes: Sequence[Pass], pass_class: Callable[[str], type[Pass]]) -> tuple[tuple[Pass, ...], tuple[str, ...]]:
    """Insert, with default options, each required pass that has not run when the pass that requires it comes.

    Args:
        passes: the chain as it was asked for.
        pass_class: finds a pass by name; raises when there is none.

    Returns:
        The completed passes, and a sentence for each insertion.

    Raises:
        UsageError: passes require each other in a circle.
    """
    completed: list[Pass] = []
    notes: list[str] = []
    present: set[str] = set()
    for step in passes:
        # depth first: what a required pass requires itself comes before it
        pending: list[tuple[Pass, Iterator[str]]] = [(step, iter(step.requires))]
        while pending:
            current, wants = pending[-1]
            wanted = next((name for name in wants if name not in present), None)
            if wanted is None:
                pending.pop()
                completed.append(current)
                present.add(current.name)
                continue
            open_names = [waiting.name for waiting, _ in pending]
            if wanted in open_names:
                circle = [*open_names[open_names.index(wanted) :], wanted]
                raise UsageError(
                    f"passes require each other: {' -> '.join(circle)}.",
                    "Pass developer: one of these `requires` must go.",
                )
            notes.append(f"{wanted} was inserted, because {current.name} requires it")
            required = pass_class(wanted)()
            pending.append((required, iter(required.requires)))
    return tuple(completed), tuple(notes)


def _constraints(passes: Sequence[Pass]) -> Iterator[Constraint]:
    places: dict[str, list[int]] = defaultdict(list)
    for index, step in enumerate(passes):
        places[step.name].append(index)
    for name, own in places.items():
        step = passes[own[0]]
        for earlier in dict.fromkeys((*step.after, *step.requires)):
            for index in own if earlier in places else ():
                yield Constraint(places[earlier][0], index, f"{name} asks to run after {earlier}")
        for later in dict.fromkeys(step.before):
            for index in places.get(later, ()):
                yield Constraint(own[0], index, f"{name} asks to run before {later}")


def _sorted(count: int, constraints: Sequence[Constraint]) -> list[int]:
    """Stable topological order of 0..count-1; what a cycle holds up is missing from it."""
    followers: dict[int, list[int]] = defaultdict(list)
    waiting = [0] * count
    for constraint in constraints:
        followers[constraint.earlier].append(constraint.later)
        waiting[constraint.later] += 1
    ready = [index for index in range(count) if not waiting[index]]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for follower in followers[index]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(ready, follower)
    return order
