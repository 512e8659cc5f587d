"""Element types of outputs: what is certain, and nothing else."""

import numpy as np
import pytest
from onnx import parser

from rewright.model.load import load
from rewright.model.view import View
from rewright.shapes.types import output_dtypes

HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> '


@pytest.mark.parametrize(
    ("call", "known"),
    [
        ("com.microsoft.FastGelu(x)", np.float32),
        ("com.microsoft.EmbedLayerNormalization(i, i, x, x, x, w, w)", np.float32),
        ("com.microsoft.QuantizeLinear(x, s, z)", None),
        ("com.microsoft.DequantizeLinear(z, s, z)", None),
        ("com.microsoft.QLinearConcat(s, z, q, s, z)", None),
        ("com.microsoft.Unheard(x)", None),
    ],
)
def test_a_microsoft_op_has_the_type_of_an_input_only_where_that_is_known(call: str, known: type | None) -> None:
    text = f"g (float[4,4] x, float[4] w, float s, int8 z, int8[4] q, int32[1,2] i) => (y) {{ y = {call} }}"
    (node,) = View(load(parser.parse_model(HEAD + text))).graph.nodes
    assert output_dtypes(node, 17)[0] == known
