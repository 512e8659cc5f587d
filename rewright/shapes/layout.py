"""Dimensions of what rearranges, selects and joins: Reshape, Transpose, Slice, Concat and their like."""

from __future__ import annotations

from typing import Any, Final

from rewright.model.facts import attribute
from rewright.shapes import dimensions, terms
from rewright.shapes.dimensions import Size
from rewright.shapes.items import Item
from rewright.shapes.rule import Dims, Known, Rule
from rewright.shapes.values import taken

_AXES_ARE_INPUTS: Final = 13
_SLICE_HAS_INPUTS: Final = 10
_SPLIT_HAS_INPUTS: Final = 13
_SPLIT_HAS_COUNT: Final = 18
_PADS_ARE_INPUTS: Final = 11


def axis_of(node: Any, default: int | None, rank: int) -> int | None:
    """The ``axis`` attribute, counted from the front; None if it is not known or out of range."""
    axis = attribute(node, "axis", default)
    return axis % rank if isinstance(axis, int) and -rank <= axis < rank else None


def _reshape(known: Known, node: Any) -> list[Dims | None] | None:
    """Numbers, symbols, copied dimensions, and for -1 what remains.

    A symbol in the target is taken for the dimension that it says. Where it is 0 ONNX copies the input's dimension instead;
    what is said here of a Reshape with a computed target holds for tensors that have elements.
    """
    target = known.items(node.inputs[1]) if len(node.inputs) > 1 else None
    dims = known.dims(node.inputs[0])
    if target is None or not target.is_vector:
        return None
    copies = not attribute(node, "allowzero", 0)
    sizes: Dims = []
    open_places: list[int] = []
    for index, item in enumerate(target.items):
        if item == 0 and copies:
            sizes.append(dims[index] if dims is not None and index < len(dims) else None)
        elif item is not None and item != -1 and known.is_dimension(item):
            sizes.append(item)
        else:
            sizes.append(None)
            open_places.append(index)
    if dims is None or None in (held for index, held in enumerate(sizes) if index not in open_places):
        return [sizes]
    whole, rest = dimensions.product(dims), dimensions.product([size for size in sizes if size is not None])
    if len(open_places) == 1:
        # What remains: also for an entry that is not known, because the number of elements stays.
        sizes[open_places[0]] = _remaining(whole, rest)
    elif not open_places and whole is not None and rest is not None:
        known.equal(whole, rest)
    return [sizes]


def _remaining(whole: Item, rest: Item) -> Item:
    if whole is None or rest is None or rest == 0:
        return None
    return terms.floor_divide(whole, rest)


def _flatten(known: Known, node: Any) -> list[Dims | None] | None:
    dims, axis = known.dims(node.inputs[0]), attribute(node, "axis", 1)
    if dims is None or not isinstance(axis, int) or not -len(dims) <= axis <= len(dims):
        return [[None, None]]
    axis += len(dims) if axis < 0 else 0
    return [[dimensions.product(dims[:axis]), dimensions.product(dims[axis:])]]


def _transpose(known: Known, node: Any) -> list[Dims | None] | None:
    dims, perm = known.dims(node.inputs[0]), attribute(node, "perm")
    if dims is None:
        return None
    if perm is None:
        return [list(reversed(dims))]
    if not isinstance(perm, list) or sorted(perm) != list(range(len(dims))):
        return None
    return [[dims[axis] for axis in perm]]


def _unsqueeze(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    axes = known.setting(node, "axes", 1, _AXES_ARE_INPUTS, None)
    if dims is None or axes is None:
        return None
    rank = len(dims) + len(axes)
    inserted = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(inserted) != len(axes):
        return None
    rest = iter(dims)
    return [[1 if axis in inserted else next(rest) for axis in range(rank)]]


def _squeeze(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    is_given = len(node.inputs) > 1 and node.inputs[1].name if known.opset >= _AXES_ARE_INPUTS else attribute(node, "axes")
    if not is_given:
        certain = all(dim == 1 or dimensions.never_one(dim) for dim in dims)
        return [[dim for dim in dims if dim != 1]] if certain else None
    axes = known.setting(node, "axes", 1, _AXES_ARE_INPUTS, None)
    if axes is None or any(not -len(dims) <= axis < len(dims) for axis in axes):
        return None
    gone = {axis % len(dims) for axis in axes}
    for axis in gone:
        known.equal(dims[axis], 1)
    return [[dim for axis, dim in enumerate(dims) if axis not in gone]]


def _expand(known: Known, node: Any) -> list[Dims | None] | None:
    wanted, dims = known.items(node.inputs[1]), known.dims(node.inputs[0])
    if wanted is None or not wanted.is_vector or dims is None:
        return None
    return [known.broadcast([list(dims), list(wanted.items)])]


def _tile(known: Known, node: Any) -> list[Dims | None] | None:
    dims, repeats = known.dims(node.inputs[0]), known.items(node.inputs[1]) if len(node.inputs) > 1 else None
    if dims is None:
        return None
    if repeats is None or len(repeats.items) != len(dims):
        return [[None] * len(dims)]
    pairs = zip(dims, repeats.items, strict=True)
    return [[dimensions.multiply(dim, count) if count is not None else None for dim, count in pairs]]


def _concat(known: Known, node: Any) -> list[Dims | None] | None:
    """The sum along the axis. The other dimensions are equal, except that ONNX Runtime passes over inputs without elements.

    So unequal texts need not be equal sizes. Where just one dimension differs and no input is empty along the axis, an input
    is passed over only if that dimension is 0, and the larger one is what comes out.
    """
    shapes = [dims for tensor in node.inputs if (dims := known.dims(tensor)) is not None]
    if len(shapes) < len(node.inputs) or any(len(dims) != len(shapes[0]) for dims in shapes):
        return None
    axis = axis_of(node, None, len(shapes[0]))
    if axis is None:
        return None
    columns = [list(dict.fromkeys(column)) for column in zip(*shapes, strict=True)]
    unequal = [index for index, column in enumerate(columns) if index != axis and len(column) > 1]
    sizes: Dims = [column[0] if len(column) == 1 else None for column in columns]
    if len(unequal) == 1 and all(isinstance(dims[axis], int) and dims[axis] != 0 for dims in shapes):
        largest = columns[unequal[0]][0]
        for dim in columns[unequal[0]]:
            largest = terms.maximum(largest, dim)
        sizes[unequal[0]] = largest
    total: Item = 0
    for dims in shapes:
        total = dimensions.add(total, dims[axis]) if total is not None else None
    sizes[axis] = total
    return [sizes]


def _split(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    axis = axis_of(node, 0, len(dims)) if dims is not None else None
    if dims is None or axis is None:
        return None
    count = len(node.outputs)
    lengths: list[Item] | None
    if known.opset >= _SPLIT_HAS_INPUTS and len(node.inputs) > 1 and node.inputs[1].name:
        held = known.items(node.inputs[1])
        lengths = list(held.items) if held is not None else None
    elif known.opset < _SPLIT_HAS_INPUTS and attribute(node, "split") is not None:
        given = attribute(node, "split")
        lengths = list(given) if isinstance(given, list) else None
    else:
        lengths = (
            _even_parts(dims[axis], count) if known.opset >= _SPLIT_HAS_COUNT else [terms.floor_divide(dims[axis], count)] * count
        )
    if lengths is None or len(lengths) != count:
        lengths = [None] * count
    return [[*dims[:axis], length, *dims[axis + 1 :]] for length in lengths]


def _even_parts(dim: Size, count: int) -> list[Item]:
    """Equal parts, the last one smaller where ``num_outputs`` does not divide the dimension."""
    part = terms.ceil_divide(dim, count)
    if part is None:
        return [None] * count
    before = dimensions.multiply(part, count - 1)
    last = dimensions.add(dim, before, -1) if before is not None else None
    return [*([part] * (count - 1)), last]


def _slice(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    ranges = slice_ranges(known, node)
    if dims is None:
        return None
    if ranges is None:
        return [[None] * len(dims)]
    sizes: Dims = list(dims)
    for axis, (start, end, step) in ranges.items():
        sizes[axis] = _sliced(dims[axis], start, end, step)
    return [sizes]


def slice_ranges(known: Known, node: Any) -> dict[int, tuple[Item, Item, Item]] | None:
    """Start, end and step of a Slice by axis; None if the axes are not known."""
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    operands: list[list[Item] | None] = []
    for index, name in enumerate(("starts", "ends", "axes", "steps")):
        if known.opset < _SLICE_HAS_INPUTS:
            held = attribute(node, name)
            operands.append(list(held) if isinstance(held, list) else [])
        elif len(node.inputs) > index + 1 and node.inputs[index + 1].name:
            value = known.items(node.inputs[index + 1])
            operands.append(list(value.items) if value is not None else None)
        else:
            operands.append([])
    count = next((len(held) for held in operands if held), None)
    if count is None:
        return None
    unknown: list[Item] = [None] * count
    defaults: tuple[list[Item], ...] = (unknown, unknown, list(range(count)), [1] * count)
    columns = [unknown if held is None else held or default for held, default in zip(operands, defaults, strict=True)]
    if any(len(column) != count for column in columns):
        return None
    found: dict[int, tuple[Item, Item, Item]] = {}
    for start, end, axis, step in zip(*columns, strict=True):
        if not isinstance(axis, int) or not -len(dims) <= axis < len(dims):
            return None
        found[axis % len(dims)] = (start, end, step)
    return found


def reaches(end: Item, dim: Size) -> bool:
    """Whether a Slice up to ``end`` takes all of ``dim``."""
    if end is None:
        return False
    if isinstance(end, int) and end >= terms.TO_THE_END:
        return True
    beyond = dimensions.add(end, dim, -1)
    return beyond is not None and terms.never_negative(beyond)


def _sliced(dim: Size, start: Item, end: Item, step: Item) -> Item:
    if not isinstance(step, int) or step == 0 or start is None or end is None:
        return None
    if isinstance(dim, int) and isinstance(start, int) and isinstance(end, int):
        return len(taken(start, end, step, dim))
    if step < 0:
        is_whole = (start == -1 or reaches(start, dim)) and isinstance(end, int) and end <= -terms.TO_THE_END
        return terms.ceil_divide(dim, -step) if is_whole else None
    length = terms.sliced(start, terms.TO_THE_END if reaches(end, dim) else end, dim)
    return length if step == 1 or length is None else terms.ceil_divide(length, step)


def _gather(known: Known, node: Any) -> list[Dims | None] | None:
    data, indices = known.dims(node.inputs[0]), known.dims(node.inputs[1])
    axis = axis_of(node, 0, len(data)) if data is not None else None
    if data is None or indices is None or axis is None:
        return None
    return [[*data[:axis], *indices, *data[axis + 1 :]]]


def _gather_elements(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[1])
    return [list(dims)] if dims is not None else None


def _gather_nd(known: Known, node: Any) -> list[Dims | None] | None:
    data, indices, batch = known.dims(node.inputs[0]), known.dims(node.inputs[1]), attribute(node, "batch_dims", 0)
    if data is None or not indices or not isinstance(indices[-1], int) or not isinstance(batch, int):
        return None
    return [[*indices[:-1], *data[batch + indices[-1] :]]]


def _pad(known: Known, node: Any) -> list[Dims | None] | None:
    dims = known.dims(node.inputs[0])
    if dims is None:
        return None
    axes: list[int] | None = list(range(len(dims)))
    if known.opset < _PADS_ARE_INPUTS:
        held = attribute(node, "pads", attribute(node, "paddings"))
        pads: list[Item] | None = list(held) if isinstance(held, list) else None
    else:
        value = known.items(node.inputs[1])
        pads = list(value.items) if value is not None else None
        if len(node.inputs) > 3 and node.inputs[3].name:
            axes = known.numbers(node, 3)
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return [[None] * len(dims)]
    sizes: Dims = list(dims)
    for index, axis in enumerate(axes):
        begin, end = pads[index], pads[index + len(axes)]
        around = dimensions.add(begin, end) if begin is not None and end is not None else None
        sizes[axis] = dimensions.add(dims[axis], around) if around is not None else None
    return [sizes]


def _depth_to_space(known: Known, node: Any) -> list[Dims | None] | None:
    dims, block = known.dims(node.inputs[0]), attribute(node, "blocksize")
    if dims is None or len(dims) != 4 or not isinstance(block, int) or block < 1:
        return None
    if node.op == "DepthToSpace":
        return [[dims[0], dimensions.divide(dims[1], block * block), *(dimensions.multiply(dim, block) for dim in dims[2:])]]
    return [[dims[0], dimensions.multiply(dims[1], block * block), *(terms.floor_divide(dim, block) for dim in dims[2:])]]


LAYOUT: Final[dict[str, Rule]] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _depth_to_space,
}
