"""What is known about the dimensions of an Einsum, however its equation is written."""

from __future__ import annotations

import numpy as np
import pytest
from fact_check import facts_of, violations
from onnx import parser


def einsum(equation: str, left: str, right: str) -> str:
    return f"""
        <ir_version: 9, opset_import: ["" : 17]>
        g (float[{left}] x, float[{right}] y) => (float z) {{
            e = Einsum <equation = "{equation}"> (x, y)
            z = ReduceSum <keepdims = 0> (e)
        }}"""


@pytest.mark.parametrize(
    ("equation", "left", "right", "shape"),
    [
        ("abc,abd->bcd", "A, 2, 3", "A, 2, 5", (2, 3, 5)),
        ("ij,jk", "A, 3", "3, 5", ("A", 5)),
        ("ba,bc", "2, A", "2, 3", ("A", 3)),
        ("...qhd,...khd->...hqk", "2, A, 4, 3, 6", "2, A, 5, 3, 6", (2, "A", 3, 4, 5)),
        ("...qd, ...kd -> q...k", "2, A, 4, 6", "2, A, 5, 6", (4, 2, "A", 5)),
        ("a...,a...->...", "2, 1, 5", "2, A, 5", ("A", 5)),
        ("...b,bc", "A, 4, 3", "3, 5", ("A", 4, 5)),
        ("b...,b", "3", "3", ()),
    ],
)
def test_the_dimensions_are_known(equation, left, right, shape):
    model = parser.parse_model(einsum(equation, left, right))
    assert facts_of(model)["e"] == shape
    sizes = [[int(dim) if dim.strip().isdigit() else 7 for dim in text.split(",")] for text in (left, right)]
    feeds = dict(zip("xy", (np.ones(size, np.float32) for size in sizes), strict=True))
    wrong, ran = violations(model, [feeds])
    assert ran == 1
    assert not wrong


def test_nothing_is_said_where_an_operand_does_not_fit_its_letters():
    known = facts_of(parser.parse_model(einsum("abc,cd->abd", "A, 3", "3, 5")))["e"]
    assert known is None or not {3, 5, "A"} & set(known)
