"""Writes models node by node, for tests that go through many spellings of one computation."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

OPSETS = [11, 13, 14, 17, 18, 20, 23]


class Spelling:
    """Writes a model node by node."""

    def __init__(self, opset=17, elem_type=TensorProto.FLOAT, constants="initializer", shape=(2, 3, 5)):
        self.nodes, self.initializers, self.opset, self.elem_type, self.constants = [], [], opset, elem_type, constants
        self.shape = shape

    def __call__(self, op, *inputs, **attributes):
        output = attributes.pop("output", None) or f"{op}_{len(self.nodes)}"
        domain = attributes.pop("domain", "")
        self.nodes.append(helper.make_node(op, list(inputs), [output], f"n{len(self.nodes)}", domain=domain, **attributes))
        return output

    def number(self, value, elem_type=None, shape=()):
        elem_type = elem_type or self.elem_type
        array = np.full(shape, value, helper.tensor_dtype_to_np_dtype(elem_type))
        name = f"c{len(self.nodes)}_{len(self.initializers)}"
        if self.constants == "value_float" and elem_type == TensorProto.FLOAT and shape == () and self.opset >= 12:
            return self("Constant", value_float=float(value))
        if self.constants == "node":
            return self("Constant", value=helper.make_tensor("t", elem_type, shape, array.reshape(-1)))
        self.initializers.append(helper.make_tensor(name, elem_type, shape, array.reshape(-1)))
        return name

    def array(self, values):
        """A constant of these values, as an initializer or a Constant node."""
        tensor = numpy_helper.from_array(
            np.ascontiguousarray(values).reshape(np.shape(values)), f"a{len(self.nodes)}_{len(self.initializers)}"
        )
        if self.constants == "node":
            return self("Constant", value=tensor)
        self.initializers.append(tensor)
        return tensor.name

    def model(self, result, outputs=(), x_type=None):
        if self.nodes[-1].output[0] == result:
            self.nodes[-1].output[0] = result = "y"
        values = [helper.make_tensor_value_info(name, x_type or self.elem_type, self.shape) for name in (result, *outputs)]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", x_type or self.elem_type, self.shape)],
            values,
            self.initializers,
        )
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=imports, ir_version=7 if self.opset < 20 else 10)


def commuted(spell, op, left, right, swap):
    return spell(op, *((right, left) if swap else (left, right)))
