"""Images whose dimensions are all open: the first convolution fixes the channels, position embeddings the size."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

import rewright
from rewright.model.load import load
from rewright.verify.convolutions import first_convolution, sides_of_image
from rewright.verify.inputs import make_fallback_sets, make_input_sets
from rewright.verify.roles import infer_roles
from rewright.verify.uses import Uses


def patches(
    positions: tuple[int, ...] = (1, 17, 8), dims: str = "batch, channels, height, width", steps: str = "", other: int = 8
) -> ModelProto:
    """Images cut into patches of 4 by 4, a class token before them, and position embeddings that are added.

    Beside that a table of 50 rows, one of which is added to a constant of `other` rows, and a matrix that nothing reads.
    """
    model = parser.parse_model(f"""<ir_version: 9, opset_import: ["" : 17]>
        g (float[{dims}] pixel_values) => (float[batch, positions, 8] y) {{
        {steps or "cast = Identity(pixel_values)"}
        cut = Conv<kernel_shape = [4, 4], strides = [4, 4]>(cast, kernel)
        all = Constant<value = int64[3] {{0, 8, -1}}>() flat = Reshape(cut, all) tokens = Transpose<perm = [0, 2, 1]>(flat)
        at = Constant<value = int64 {{0}}>() row = Gather(table, at) more = Add(row, other)
        first = ReduceMean<axes = [1]>(tokens) joined = Concat<axis = 1>(first, tokens) y = Add(joined, places)
    }}""")
    random = np.random.default_rng(0)
    for name, shape in (
        ("kernel", (8, 3, 4, 4)),
        ("places", positions),
        ("table", (50, 8)),
        ("matrix", (65, 8)),
        ("other", (1, other, 8)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    return model


@pytest.mark.parametrize("dims", ["batch, channels, height, width", "batch, channels, size, size"])
@pytest.mark.parametrize("positions", [(1, 17, 8), (17, 8)])
def test_a_vision_transformer_runs_on_every_set(dims, positions):
    report = rewright.optimize(patches(positions, dims), chain="dead-code").report
    assert report.verdict == "passed"
    assert report.parity is not None
    assert (report.parity.input_sets, report.parity.dropped) == (["set-0", "set-1", "set-2", "set-3"], [])


def test_every_image_has_the_channels_of_the_kernel_and_the_size_of_the_positions():
    made = make_input_sets(load(patches()))
    assert [each.arrays["pixel_values"].shape for each in made] == [
        (2, 3, 16, 16),
        (3, 3, 16, 16),
        (1, 3, 16, 16),
        (2, 3, 16, 16),
    ]


def test_dimensions_without_names():
    model = patches()
    for dim in model.graph.input[0].type.tensor_type.shape.dim:
        dim.ClearField("dim_param")
    assert {each.arrays["pixel_values"].shape[1:] for each in make_input_sets(load(model))} == {(3, 16, 16)}


@pytest.mark.parametrize(
    ("positions", "sides"),
    [
        ((1, 17, 8), (16, 28)),  # of rank 3 first
        ((1, 18, 8), (16, 28)),
        ((1, 16, 8), (16, 28)),
        ((17, 8), (16, 28)),
        ((50, 8), (28,)),
        ((1, 19, 8), (28,)),
        ((2, 17, 8), (28,)),
    ],
)
def test_the_sides_that_position_embeddings_may_be_for(positions, sides):
    uses = Uses(load(patches(positions)))
    convolution = first_convolution("pixel_values", uses)
    assert convolution is not None
    assert sides_of_image(convolution, uses) == sides


def test_the_next_candidate_is_tried_where_the_first_does_not_run():
    """A constant of (1, 26, filters) that is no position embedding comes first."""
    model = patches((17, 8), other=26)
    (role,) = infer_roles(load(model))
    assert role.sides == (20, 16, 28)
    sizes = [each.arrays["pixel_values"].shape[2:] for each in make_fallback_sets(load(model))]
    assert sizes[:8] == [(16, 16)] * 4 + [(28, 28)] * 4
    report = rewright.optimize(model, chain="dead-code").report
    assert report.verdict == "passed"
    assert report.parity is not None
    assert len(report.parity.input_sets) == 4


def test_what_a_group_and_a_cast_do():
    model = parser.parse_model("""<ir_version: 9, opset_import: ["" : 17]>
        g (float16[batch, channels, length] x) => (float[batch, 6, n] y) {
        wide = Cast<to = 1>(x) y = Conv<group = 2>(wide, kernel)
    }""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((6, 5, 3), np.float32), "kernel"))
    (role,) = infer_roles(load(model))
    assert (role.dims, role.sides) == (("batch", 10, "length"), ())


@pytest.mark.parametrize("dims", ["batch, 3, height, width", "batch, 3, 16, 16"])
def test_what_is_fixed_stays(dims):
    (role,) = infer_roles(load(patches(dims=dims)))
    assert role.dims[1] == 3
    assert {each.arrays["pixel_values"].shape[2:] for each in make_input_sets(load(patches(dims=dims)))} == {(16, 16)}


def test_a_transposed_image_has_its_channels_elsewhere():
    model = patches(dims="batch, height, width, channels", steps="cast = Transpose<perm = [0, 3, 1, 2]>(pixel_values)")
    (role,) = infer_roles(load(model))
    assert role.dims == ("batch", "height", "width", "channels")


def test_a_plain_convolution_leaves_the_size_open():
    model = helper.make_model(
        parser.parse_graph("g (float[b, c, h, w] x) => (float[b, 4, n, m] y) { y = Conv<strides = [2, 2]>(x, kernel) }"),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "kernel"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 17, 4), np.float32), "other"))
    (role,) = infer_roles(load(model))
    assert (role.dims, role.sides) == (("b", 3, "h", "w"), ())
