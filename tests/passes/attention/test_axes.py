"""The algebra of layouts says where every element goes: held against numpy for random sequences of moves."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewright.passes.attention.axes import Axes, Unproven, length, number, sizes_of
from rewright.shapes.dimensions import multiply, product, symbol

B, S = symbol("batch"), symbol("sequence")


def tensor(*shape):
    return SimpleNamespace(name="x", shape=list(shape), inputs=[], dtype=np.float32)


def evaluated(size, values):
    if isinstance(size, int):
        return size
    return sum(factor * int(np.prod([values[name] for name in names])) for names, factor in size.terms)


def predicted(axes, start, layout, values):
    """The value that has ``layout``, where the one of the layout ``start`` counts its elements."""
    held = [atom for axis in axes.resolve(start) for atom in axis]
    wanted = [atom for axis in axes.resolve(layout) for atom in axis]
    assert sorted(map(id, held)) == sorted(map(id, wanted))
    sizes = [evaluated(atom.size, values) for atom in held]
    array = np.arange(int(np.prod(sizes))).reshape(sizes).transpose([held.index(atom) for atom in wanted])
    return array.reshape([evaluated(length(axis), values) for axis in layout])


@st.composite
def moves(draw):
    """Sizes to begin with, and moves: a permutation, or new sizes for the elements in their order."""
    first = draw(
        st.lists(st.sampled_from([1, 2, 3, 4, 6, 12, B, S]), min_size=2, max_size=4).filter(lambda x: x.count(B) < 2 > x.count(S))
    )
    sizes, steps = list(first), []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["transpose", "merge", "split", "one", "regroup"]))
        if kind == "transpose":
            steps.append(("transpose", perm := draw(st.permutations(range(len(sizes))))))
            sizes = [sizes[index] for index in perm]
            continue
        if kind == "merge" and len(sizes) > 1:
            at = draw(st.integers(0, len(sizes) - 2))
            sizes = [*sizes[:at], multiply(sizes[at], sizes[at + 1]), *sizes[at + 2 :]]
        elif kind == "split":
            at = draw(st.integers(0, len(sizes) - 1))
            whole = number_in(sizes[at])
            outer = draw(st.sampled_from([factor for factor in range(1, whole + 1) if whole % factor == 0]))
            rest = sizes[at] if outer == 1 else divided(sizes[at], outer)
            sizes = [*sizes[:at], *draw(st.permutations([outer, rest])), *sizes[at + 1 :]]
        elif kind == "regroup" and all(isinstance(size, int) for size in sizes):
            total, made = int(np.prod(sizes)), []
            while total > 1 and len(made) < 4:
                made.append(draw(st.sampled_from([factor for factor in range(2, total + 1) if total % factor == 0])))
                total //= made[-1]
            sizes = [*made, total]
        else:
            sizes = [*sizes, 1]
        steps.append(("reshape", list(sizes)))
    return first, steps


def number_in(size):
    """The number that divides a size."""
    return size if isinstance(size, int) else int(np.gcd.reduce([factor for _, factor in size.terms]))


def divided(size, factor):
    if isinstance(size, int):
        return size // factor
    names = size.terms[0][0]
    return product([size.terms[0][1] // factor, *map(symbol, names)])


@settings(max_examples=300)
@given(moves(), st.sampled_from([1, 3]), st.sampled_from([1, 5]))
def test_every_element_is_where_the_layout_says(drawn, batch, sequence):
    first, steps = drawn
    values = {"batch": batch, "sequence": sequence}
    axes = Axes()
    start = layout = axes.seed(tensor(*[size if isinstance(size, int) else str(size) for size in first]))
    shape = [evaluated(size, values) for size in first]
    array = np.arange(int(np.prod(shape))).reshape(shape)
    for kind, held in steps:
        if kind == "transpose":
            array, layout = array.transpose(held), tuple(layout[index] for index in held)
            continue
        try:
            layout = axes.regroup(layout, held)
        except Unproven:
            break  # what was said so far has to be true nevertheless
        array = array.reshape([evaluated(size, values) for size in held])
        assert [length(axis) for axis in axes.resolve(layout)] == held
    np.testing.assert_array_equal(predicted(axes, start, layout, values), array)


def heads_of(axes, *shape, heads=2, size=4):
    """The layout of (batch, sequence, heads x size), and of its heads first."""
    start = axes.seed(tensor("batch", "sequence", heads * size))
    batch, sequence, head, place = axes.regroup(start, [B, S, heads, size])
    return start, (batch, head, sequence, place)


def test_a_split_of_an_axis_is_seen_everywhere():
    axes = Axes()
    start, (_, head, _, place) = heads_of(axes)
    assert axes.resolve(start)[2] == head + place
    assert number(axes.resolve(start)[2]) == 8


@pytest.mark.parametrize("perm", [(0, 2, 1, 3), (1, 0, 2, 3), (2, 0, 1, 3), (0, 1, 3, 2)])
def test_back_and_forth(perm):
    axes = Axes()
    start, heads_first = heads_of(axes)
    there = tuple(heads_first[index] for index in perm)
    merged = axes.regroup(there, [product([length(axis) for axis in there])])
    again = axes.regroup(merged, [length(axis) for axis in there])
    assert axes.resolve(again) == axes.resolve(there)
    assert axes.resolve(start)[0] == axes.resolve((heads_first[0],))[0]


def test_two_splits_that_agree():
    axes = Axes()
    start = axes.seed(tensor(24))
    coarse = axes.regroup(start, [4, 6])
    fine = axes.regroup(coarse, [2, 2, 3, 2])
    assert axes.regroup(start, [2, 12]) == axes.resolve(((fine[0]), fine[1] + fine[2] + fine[3]))


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((4, 6), [3, 8]),  # across the bounds of both
        (("batch", "sequence"), [S, B]),  # one length in the place of another
        (("batch", 8), [B, 3, 3]),
        (("batch", "sequence"), [multiply(B, B)]),
        ((None, 8), [B, 2, 4]),  # an unknown length equals nothing
        (("batch", 2), [B]),
    ],
    ids=str,
)
def test_what_shapes_do_not_say(shape, sizes):
    axes = Axes()
    with pytest.raises(Unproven):
        axes.regroup(axes.seed(tensor(*shape)), sizes)


def test_two_unknown_lengths_differ():
    one, other = (sizes_of(tensor(None))[0] for _ in range(2))
    assert one != other
    assert one != symbol("unknown0") != other


def test_an_unknown_rank():
    with pytest.raises(Unproven, match="the rank of 'x' is not known"):
        sizes_of(SimpleNamespace(name="x", shape=None))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5, 1), ()])
def test_axes_of_length_1_have_no_atoms(shape):
    axes = Axes()
    layout = axes.seed(tensor(*shape))
    assert all(axis == () for axis, size in zip(layout, shape, strict=True) if size == 1)
    assert [number(axis) for axis in axes.regroup(layout, [1, *shape, 1])] == [1, *shape, 1]


def test_a_part_is_not_split():
    axes = Axes()
    part, inner = axes.seed(tensor(24))[0][0], axes.seed(tensor(8))[0]
    held = type(part)(24, 8, inner)
    assert axes.used((held,)) == inner
    with pytest.raises(Unproven, match="regrouped across each other"):
        axes.regroup(((held,),), [4, 6])
