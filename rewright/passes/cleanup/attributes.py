"""The attributes of a node as protos, for passes that hand single nodes to other tools or compare them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto

from rewright.model.elements import Opaque, WeightRef


def attribute_protos(node: Any) -> list[AttributeProto] | None:
    """The node's attributes; the source's own messages where nothing changed.

    None for a node with bodies or with references to attributes of an enclosing function: it means nothing by itself.
    """
    source = getattr(node, "proto", None)
    if source is not None and ("_attrs" not in node.__dict__ or not node.attributes_changed()):
        own = list(source.attribute)
        return None if any(item.ref_attr_name or item.HasField("g") or item.graphs for item in own) else own
    made: list[AttributeProto] = []
    for name, value in node.attrs.items():
        if isinstance(value, (gs.Graph, gs.Node.AttributeRef)):
            return None
        if isinstance(value, Opaque):
            made.append(value.proto)
        elif isinstance(value, gs.Constant) and isinstance(value._values, WeightRef):
            made.append(AttributeProto(name=name, type=AttributeProto.TENSOR, t=value._values.tensor))
        elif isinstance(value, (gs.Constant, np.ndarray)):
            array = value.values if isinstance(value, gs.Constant) else value
            made.append(AttributeProto(name=name, type=AttributeProto.TENSOR, t=onnx.numpy_helper.from_array(array)))
        else:
            made.append(onnx.helper.make_attribute(name, value.item() if isinstance(value, np.generic) else value))
    return made
