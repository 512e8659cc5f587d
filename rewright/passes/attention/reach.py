"""Masked scores that other scores could reach: what has to be proven before -10000 may be taken for a mask."""

from __future__ import annotations

from dataclasses import replace

from rewright.passes.attention.axes import Unproven
from rewright.passes.attention.causal import causal
from rewright.passes.attention.scores import REACHABLE, Scores, absorbing, lowest
from rewright.passes.attention.writing import Writer


def out_of_reach(writer: Writer) -> Scores:
    """The scores, with the lowest number wherever a number that scores could reach stands for a masked one.

    Both weigh nothing beside a score that is kept. Where a row keeps none, or something else is masked by a lower number, -10000
    would be the highest score; so the mask must be proven to be causal, which leaves each query its own key, and nothing else.

    Raises:
        Unproven: it is not.
    """
    scores = writer.attention.scores
    limit = absorbing(scores.product.operands[0])
    near = [term for term in scores.terms if term.kind in ("keep-where", "mask-where") and term.number > limit]
    if not near:
        return scores
    found = causal(writer, REACHABLE)
    if found is None or found.rest:
        reason = f"masked scores become {near[0].number:g}, which a score may reach, and not each row is known to keep a key"
        raise Unproven(reason, near[0].node)
    writer.assumptions.append(f"scores are taken to stay above {near[0].number:g}, which masks them")
    kind = writer.attention.kind
    return replace(scores, terms=tuple(replace(term, number=lowest(kind)) if term in near else term for term in scores.terms))
