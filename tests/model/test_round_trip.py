"""Random models survive the editing view byte for byte: bodies, captures, functions, omitted inputs, defaults, odd names."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from rewright.model.load import load
from rewright.model.order import is_sorted
from rewright.model.view import View

UNARY = ("Neg", "Abs", "Relu", "Identity")
BINARY = ("Add", "Mul", "Sub")
TEXT = st.text(max_size=4)


@dataclass
class Writer:
    """Writes nodes over float[2,3] values; every value that is in scope may be read."""

    draw: st.DrawFn
    count: int = 0
    functions: list[str] = field(default_factory=list)

    def fresh(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def node(self, scope: list[str], depth: int) -> NodeProto:
        draw, out = self.draw, self.fresh()
        read = st.sampled_from(scope)
        kinds = ["unary", "binary", "clip", "constant", *(["if", "loop"] if depth else []), *(["call"] if self.functions else [])]
        kind = draw(st.sampled_from(kinds))
        if kind == "unary":
            node = helper.make_node(draw(st.sampled_from(UNARY)), [draw(read)], [out])
        elif kind == "binary":
            node = helper.make_node(draw(st.sampled_from(BINARY)), [draw(read), draw(read)], [out])
        elif kind == "clip":
            node = helper.make_node("Clip", [draw(read), draw(st.sampled_from(["", "low"])), "high"], [out])
        elif kind == "constant":
            node = helper.make_node("Constant", [], [out], value=numpy_helper.from_array(np.ones((2, 3), np.float32)))
        elif kind == "call":
            node = helper.make_node(draw(st.sampled_from(self.functions)), [draw(read)], [out], domain="local")
        elif kind == "if":
            branches = {name: self.body(scope, depth - 1, []) for name in ("then_branch", "else_branch")}
            node = helper.make_node("If", ["flag"], [out], **branches)
        else:
            own = [self.fresh() for _ in range(3)]
            node = helper.make_node("Loop", ["trips", "", draw(read)], [out], body=self.body(scope, depth - 1, own))
        node.name = draw(st.sampled_from(["", "same", out]))
        if draw(st.booleans()):
            node.doc_string = draw(TEXT)
            node.metadata_props.add(key=draw(TEXT), value=draw(TEXT))
        return node

    def body(self, scope: list[str], depth: int, inputs: list[str]) -> GraphProto:
        """A branch (no inputs) or a loop body (iteration, condition, one carried value)."""
        graph = GraphProto(name=self.draw(st.sampled_from(["body", ""])))
        names = list(scope)
        if inputs:
            for name, kind, shape in zip(
                inputs, (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT), ([], [], [2, 3]), strict=True
            ):
                graph.input.append(helper.make_tensor_value_info(name, kind, shape))
            names.append(inputs[2])
            graph.output.append(ValueInfoProto(name=inputs[1]))
        if self.draw(st.booleans()):
            names.append(self.weight(graph))
        self.nodes(graph, names, depth)
        graph.output.append(ValueInfoProto(name=self.draw(st.sampled_from(names))))
        return graph

    def weight(self, graph: GraphProto) -> str:
        name = self.fresh()
        graph.initializer.append(numpy_helper.from_array(np.full((2, 3), self.count, np.float32), name))
        return name

    def nodes(self, graph: GraphProto, scope: list[str], depth: int) -> None:
        for _ in range(self.draw(st.integers(1, 4))):
            node = self.node(scope, depth)
            graph.node.append(node)
            scope.extend(node.output)


@st.composite
def models(draw: st.DrawFn) -> ModelProto:
    writer = Writer(draw)
    proto = ModelProto(ir_version=draw(st.sampled_from([3, 4, 8, 10])), producer_name=draw(TEXT), doc_string=draw(TEXT))
    proto.opset_import.add(domain=draw(st.sampled_from(["", "ai.onnx"])), version=18)
    proto.opset_import.add(domain="local", version=1)
    for name in ("F", "G")[: draw(st.integers(0, 2))]:
        function = proto.functions.add(name=name, domain="local", input=["a"], output=["b"], attribute=["alpha"])
        function.opset_import.add(version=17)
        function.node.add(op_type="LeakyRelu", input=["a"], output=["b"]).attribute.add(
            name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT
        )
        writer.functions.append(name)
    graph = proto.graph
    graph.name = draw(TEXT)
    for name, kind, shape in (
        ("x", TensorProto.FLOAT, ["batch", 3]),
        ("flag", TensorProto.BOOL, []),
        ("trips", TensorProto.INT64, []),
    ):
        graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    for name in ("low", "high"):
        graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), name))
        if draw(st.booleans()) or proto.ir_version == 3:
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
    scope = ["x"]
    if draw(st.booleans()):
        scope.append(writer.weight(graph))
    writer.nodes(graph, scope, depth=2)
    for name in draw(st.lists(st.sampled_from(scope), min_size=1, max_size=3, unique=True)):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    produced = [name for node in graph.node for name in node.output]
    for name in draw(st.lists(st.sampled_from(produced), max_size=2, unique=True)):
        graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]))
    return proto


SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@SETTINGS
@given(models())
def test_random_models_survive_the_view(proto: ModelProto) -> None:
    loaded = load(proto)
    view = View(loaded)
    assert view.to_model().session_bytes() == loaded.session_bytes()
    assert view.to_model().session_bytes() == loaded.session_bytes()  # and exporting changes nothing


@SETTINGS
@given(models())
def test_random_models_survive_a_copy_of_the_graph(proto: ModelProto) -> None:
    loaded = load(proto)
    view = View(loaded)
    view.graph = view.graph.copy()
    assert view.to_model().session_bytes() == loaded.session_bytes()


@SETTINGS
@given(models(), st.randoms(use_true_random=False))
def test_shuffled_nodes_come_back_in_an_order_that_works(proto: ModelProto, random: object) -> None:
    view = View(load(proto))
    for graph in view.graphs():
        random.shuffle(graph.nodes)  # type: ignore[attr-defined]
    made = view.to_model()
    assert all(is_sorted(graph.nodes) for graph in view.graphs())
    before, after = load(proto), made
    assert before.op_counts() == after.op_counts()


@SETTINGS
@given(models())
def test_removing_dead_nodes_twice_changes_nothing_more(proto: ModelProto) -> None:
    view = View(load(proto))
    view.graph.cleanup()
    once = view.to_model()
    again = View(once)
    again.graph.cleanup()
    assert again.to_model().session_bytes() == once.session_bytes()
    produced = {name for node in once.proto.graph.node for name in node.output}
    known = produced | {value.name for value in once.proto.graph.input} | {item.name for item in once.proto.graph.initializer}
    assert {value.name for value in once.proto.graph.output} <= known
