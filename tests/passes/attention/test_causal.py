"""Causal masks are told by what their values depend on: every spelling of them, and nothing that comes near."""

import numpy as np
import pytest
from onnx import numpy_helper
from pass_harness import as_model
from sharing import LOWEST, Sharing

from rewright.passes.attention.axes import Unproven
from rewright.passes.attention.causal import Line, Steps, causal
from rewright.passes.attention.fusing import AttentionPass
from rewright.passes.session import PassSession

INF = float("-inf")


def proven(model):
    """What ``causal`` says about the one attention of a model."""
    found = []

    class Ask(AttentionPass):
        name = "ask"

        def write(self, writer):
            found.append(causal(writer))
            raise Unproven("only asked")

    session = PassSession(Ask(), as_model(model))
    session.current.apply(session)
    assert [item.reason for item in session.rejections] == ["only asked"]
    return found[0]


CAUSAL = ["k<=q", "q>=k", "!k>q", "!q<k", "k<q+1", "q+1>k", "k+3<=q+3", "trilu", "buffer"]


@pytest.mark.parametrize("mask", [*CAUSAL, *(f"select-{name}" for name in CAUSAL)])
@pytest.mark.parametrize("fill", [LOWEST, INF, -1e9])
def test_causal_masks(mask, fill):
    found = proven(Sharing(mask=mask, fill=fill).model())
    assert found is not None
    assert (found.window, found.rest) == (None, ())


@pytest.mark.parametrize("mask", ["window1", "window3"])
def test_a_window_is_as_wide_as_it_says(mask):
    found = proven(Sharing(mask=mask).model())
    assert (found.window, found.rest) == (int(mask[-1]), ())


def test_the_diagonal_alone_is_a_window_of_one():
    assert proven(Sharing(mask="q==k").model()).window == 1
    assert proven(_with_constant(Sharing(length=6), np.where(np.eye(6) > 0, 0, LOWEST))).window == 1


@pytest.mark.parametrize("fixed", [np.tri(6), np.tri(6, k=0)[None, None]])
def test_a_constant_of_a_fixed_length(fixed):
    knobs = Sharing(mask="none", length=6)
    assert proven(_with_constant(knobs, np.where(fixed > 0, 0, LOWEST))).rest == ()


@pytest.mark.parametrize("plane", [np.tri(6, k=1), np.tri(6, k=-1), np.triu(np.ones((6, 6))), np.ones((6, 6)), np.tri(6)[::-1]])
def test_other_constants(plane):
    assert proven(_with_constant(Sharing(length=6), np.where(plane > 0, 0, LOWEST))) is None


def test_one_number_off_the_diagonal_is_noticed():
    plane = np.where(np.tri(6) > 0, 0, LOWEST)
    plane[4, 2] = LOWEST
    assert proven(_with_constant(Sharing(length=6), plane)) is None


@pytest.mark.parametrize("mask", ["k<q", "k>=q", "k<=q+1", "k+1<=q", "!k<=q", "q<=k", "kept", "and", "additive", "bias", "none"])
def test_other_masks(mask):
    assert proven(Sharing(mask=mask).model()) is None


@pytest.mark.parametrize("fill", [-1e4, -1.5, 0.0, 3.0])
def test_what_scores_come_near_does_not_mask(fill):
    assert proven(Sharing(mask="k<=q", fill=fill).model()) is None


def test_as_many_keys_as_queries():
    assert proven(Sharing(mask="k<=q", cross=True).model()) is None


@pytest.mark.parametrize(
    ("mask", "kinds"), [("k<=q,additive", ["add"]), ("bias,trilu", ["add"]), ("kept,bias,q>=k", ["add", "add"])]
)
def test_the_rest_is_what_the_causal_mask_leaves(mask, kinds):
    found = proven(Sharing(mask=mask).model())
    assert [term.kind for term in found.rest] == kinds
    assert all("Where" not in term.node.name or "kept" in mask for term in found.rest)


def test_lines_and_steps_move():
    assert Line(1, -1, 0).shifted(2, 5) == Line(1, -1, -3)
    steps = Steps((0,), (LOWEST, 0.0))
    assert [steps.shifted(0, 2).at(d) for d in (1, 2)] == [LOWEST, 0.0]  # d = i - (j + 2)
    assert [steps.shifted(2, 0).at(d) for d in (-3, -2)] == [LOWEST, 0.0]
    assert Steps.joined([1, 4], [0, 0, 7]) == Steps((4,), (0, 7))


def _with_constant(knobs, plane):
    """The model with a constant added to its scores."""
    model = Sharing(**{**vars(knobs), "mask": "bias"}).model()
    graph = model.graph
    graph.input.remove(next(value for value in graph.input if value.name == "bias"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(plane, np.float32), "bias"))
    return model
