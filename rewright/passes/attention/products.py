"""Products of two values as contractions over axes: MatMul and Einsum are the same here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewright.model.edit import domain_of
from rewright.model.facts import attribute
from rewright.passes.attention.axes import Atom, Axis, Layout, Unproven, sizes_of
from rewright.passes.attention.steps import broadcast

_RESULT = -1


@dataclass(frozen=True)
class Product:
    """A contraction.

    Attributes:
        node: the node that computes it.
        operands: the two values.
        layouts: theirs.
        result: the layout of the output.
        contracted: the axis that is summed over.
        own: for each operand the axis of the result that the other has not.
    """

    node: Any
    operands: tuple[Any, Any]
    layouts: tuple[Layout, Layout]
    result: Layout
    contracted: Axis
    own: tuple[Axis, Axis]


def is_product(node: Any) -> bool:
    """Whether the node multiplies two values by contraction."""
    return node is not None and node.op in ("MatMul", "Einsum") and not domain_of(node) and len(node.inputs) == 2


def product_above(node: Any, result: Layout) -> Product:
    """The product whose output has the layout ``result``.

    Raises:
        Unproven: it is not a contraction over one axis of values with known shapes.
    """
    labels = _labels(node)
    held = dict(zip(labels[_RESULT], result, strict=True))
    sums = _summed(labels, node)
    held[sums] = _axis_of(node.inputs[0], labels[0].index(sums))
    left, right = (_layout(tensor, names, held) for tensor, names in zip(node.inputs, labels, strict=False))
    return _made(node, labels, (left, right), result, sums, held, labels[_RESULT])


def product_below(node: Any, index: int, given: Layout) -> Product:
    """The product whose operand ``index`` has the layout ``given``.

    Raises:
        Unproven: as for ``product_above``; also where the other operand repeats the given one along an axis.
    """
    labels = _labels(node)
    held = dict(zip(labels[index], given, strict=True))
    other = node.inputs[1 - index]
    for place, label in enumerate(labels[1 - index]):
        axis = _axis_of(other, place)
        if label not in held:
            held[label] = axis
        elif not held[label] and axis and label in labels[_RESULT]:
            raise Unproven(f"'{other.name}' repeats the other factor along an axis", node)
    sums = _summed(labels, node)
    layouts = [given, given]
    layouts[1 - index] = _layout(other, labels[1 - index], held)
    result = tuple(held[label] for label in labels[_RESULT])
    return _made(node, labels, (layouts[0], layouts[1]), result, sums, held, labels[index])


def _made(
    node: Any,
    labels: tuple[str, str, str],
    layouts: tuple[Layout, Layout],
    result: Layout,
    sums: str,
    held: dict[str, Axis],
    scores: str,
) -> Product:
    """``scores`` names the axes of what goes through the softmax: rows are the last axis there that a factor has alone.

    An Einsum may have others before, where heads share what the other factor has.
    """
    own: list[Axis] = []
    for mine, other in ((labels[0], labels[1]), (labels[1], labels[0])):
        alone = [label for label in mine if label not in other and label in labels[_RESULT]]
        if not alone:
            raise Unproven("it is not a product of rows and columns", node)
        own.append(held[max(alone, key=scores.find)])
    return Product(node, tuple(node.inputs), layouts, result, held[sums], (own[0], own[1]))


def _layout(tensor: Any, names: str, held: dict[str, Axis]) -> Layout:
    return broadcast(tuple(held[name] for name in names), tensor)


def _axis_of(tensor: Any, place: int) -> Axis:
    size = sizes_of(tensor)[place]
    return () if size == 1 else (Atom(size),)


def _summed(labels: tuple[str, str, str], node: Any) -> str:
    sums = [label for label in labels[0] if label in labels[1] and label not in labels[_RESULT]]
    if len(sums) != 1 or any(label not in labels[_RESULT] and label != sums[0] for label in labels[0] + labels[1]):
        raise Unproven("it does not sum over one axis of both factors", node)
    return sums[0]


def _labels(node: Any) -> tuple[str, str, str]:
    """The axes of both operands and of the result by name; axes of one name have one length, or the length 1."""
    ranks = [len(sizes_of(tensor)) for tensor in node.inputs]
    if node.op == "Einsum":
        return _equation(node, ranks)
    if min(ranks) < 2:
        raise Unproven("a factor is a vector", node)
    batch = "abcdefghij"[: max(ranks) - 2]
    left, right = (batch[len(batch) - (rank - 2) :] for rank in ranks)
    return left + "mk", right + "kn", batch + "mn"


def _equation(node: Any, ranks: list[int]) -> tuple[str, str, str]:
    text = str(attribute(node, "equation", ""))
    sources, arrow, result = text.replace(" ", "").partition("->")
    names = sources.split(",")
    if arrow and len(names) == 2:
        batch = max((rank - len(name.replace("...", "")) for rank, name in zip(ranks, names, strict=True)), default=0)
        pool = "".join(label for label in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if label not in text)[: max(batch, 0)]
        full = [
            name.replace("...", pool[len(pool) - (rank - len(name) + 3) :] if rank > len(name) - 3 else "")
            for rank, name in zip((*ranks, len(result) - 3 + len(pool)), (*names, result), strict=True)
        ]
        if all(len(set(name)) == len(name) for name in full) and [len(name) for name in full[:2]] == ranks:
            return full[0], full[1], full[2]
    raise Unproven(f"the equation '{text}' is not a plain product of two factors", node)
