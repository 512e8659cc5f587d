"""What onnx-graphsurgeon 0.6 gets wrong, trap by trap, and that the view does not: each test is named after its trap.

Where a trap cannot arise because the view replaces the method, the test holds that it is replaced. Costs are counted in
steps, never in seconds.
"""

import copy
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from rewright.model.edit import Editor
from rewright.model.elements import Constant, Node, Variable, make_constant, make_node, make_variable
from rewright.model.errors import PassError
from rewright.model.graph import Graph
from rewright.model.load import load
from rewright.model.view import View

HEADER = '<ir_version: 10, opset_import: ["" : 18]>'


def model(body: str, signature: str = "(float[2,3] x) => (float[2,3] y)", inner: str = "", header: str = HEADER) -> ModelProto:
    return onnx.parser.parse_model(f"{header} g {signature} {inner} {{ {body} }}")


def view(proto: ModelProto) -> View:
    return View(load(proto))


def exported(proto: ModelProto) -> ModelProto:
    return view(proto).to_model().proto


def chain(count: int) -> View:
    proto = model("y = Neg(x)")
    del proto.graph.node[:]
    names = ["x", *(f"v{index}" for index in range(count - 1)), "y"]
    for index in range(count):
        proto.graph.node.append(helper.make_node("Neg", [names[index]], [names[index + 1]], name=f"n{index}"))
    return view(proto)


def fan_out(count: int) -> View:
    body = " ".join(f"v{index} = Mul(x, c)" for index in range(count))
    last = " ".join(f"s{index + 1} = Add({f's{index}' if index else 'x'}, v{index})" for index in range(count))
    return view(model(f"{body} {last} y = Identity(s{count})", inner="<float c = {2.0}>"))


def counted(function: Callable[[], object], *codes: Any) -> int:
    """How often Python enters one of the functions while ``function`` runs."""
    wanted, calls = {code.__code__ for code in codes}, 0

    def profile(frame: Any, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code in wanted

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


BRANCHES = """
    y = If (c) <
        then_branch = t () => (float[2,3] yt) { a = Neg(h) yt = Add(a, w) },
        else_branch = e () => (float[2,3] ye) { ye = Mul(h, w) }
    >"""


def branches(rows: int = 2) -> ModelProto:
    proto = model("h = Neg(x) " + BRANCHES, f"(float[{rows},3] x, bool c) => (float[{rows},3] y)")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((rows, 3), np.float32), "w"))
    return proto


# 1 to 5: lists, equality, lookups


@pytest.mark.parametrize("backwards", [False, True])
def test_01_removing_the_consumers_of_a_shared_constant_compares_nothing_deeply(backwards: bool) -> None:
    opened = fan_out(400)
    multiplications = [node for node in opened.graph.nodes if node.op == "Mul"]
    shared = multiplications[0].inputs[1]

    def clear() -> None:
        for node in reversed(multiplications) if backwards else multiplications:
            node.inputs.clear()

    assert counted(clear, Node.__eq__, gs.Node.__eq__) == 0
    assert list(shared.outputs) == []


def test_01_the_editor_removes_many_consumers_in_one_sweep() -> None:
    opened = fan_out(400)
    editor = Editor(opened)
    doomed = [node for node in opened.graph.nodes if node.op == "Mul"]
    shared = doomed[0].inputs[1]
    for node in doomed:
        editor.remove(node)
    assert len(shared.outputs) == len(doomed)  # not searched once for each node
    editor.finish()
    assert list(shared.outputs) == []
    assert "c" not in opened.graph.state.initializers


def test_02_structurally_equal_nodes_are_different_nodes() -> None:
    opened = view(model("a = Neg(x) b = Neg(x) y = Add(a, b)"))
    first, second, _ = opened.graph.nodes
    first.outputs.clear()
    second.outputs.clear()
    first.name = second.name = ""
    assert first != second
    opened.graph.nodes.remove(second)
    assert opened.graph.nodes[0] is first
    shared = first.inputs[0]
    second.inputs.clear()
    assert [node is first for node in shared.outputs] == [True]


def test_02_a_plain_graphsurgeon_node_is_not_taken_for_ours() -> None:
    opened = view(model("y = Neg(x)"))
    ours, x = opened.graph.nodes[0], opened.graph.inputs[0]
    theirs = gs.Node("Neg", ours.name, inputs=[x], outputs=[])
    theirs.inputs.clear()
    assert [node is ours for node in x.outputs] == [True]


def test_03_nodes_tensors_and_graphs_are_hashable() -> None:
    opened = view(branches())
    things = [opened.graph, *opened.graphs(), *opened.graph.nodes, *opened.graph.inputs]
    things += [tensor for node in opened.graph.nodes for tensor in node.inputs]
    assert len(set(things)) == len({id(thing) for thing in things})
    assert make_variable("x") != make_variable("x")
    assert make_constant("c", np.ones(1)) != make_constant("c", np.ones(1))


def test_04_layer_collects_the_names_once() -> None:
    opened = chain(50)
    graph = opened.graph

    def build() -> None:
        for _ in range(50):
            graph.layer(op="Neg", inputs=[graph.inputs[0]], outputs=["v1"])

    assert counted(build, gs.Graph.tensors, gs.Graph._generate_name) == 0
    made = graph.nodes[50:]
    assert all(type(node) is Node and type(node.outputs[0]) is Variable for node in made)
    names = [node.name for node in graph.nodes] + [node.outputs[0].name for node in graph.nodes]
    assert len(set(names)) == len(names)


def test_04_layer_takes_what_graphsurgeons_takes() -> None:
    opened = view(model("y = Neg(x)"))
    x = opened.graph.inputs[0]
    (out,) = opened.graph.layer(op="Sum", inputs=[x, np.ones(3, np.float32), [1.0, 2, 3], 2.0], outputs=["s"], name="sum")
    (cut,) = opened.graph.layer(op="Slice", inputs=[out, [0], (1,)], outputs=["t"], attrs={}, domain=None)
    opened.graph.outputs[0].inputs.clear()
    opened.graph.nodes.pop(0)
    opened.graph.layer(op="Relu", inputs=[cut], outputs=[opened.graph.outputs[0]])
    onnx.checker.check_model(opened.to_model().proto)
    assert [node.op_type for node in opened.to_model().proto.graph.node] == ["Sum", "Slice", "Relu"]
    with pytest.raises(PassError, match=r"Graph.layer\(\) got"):
        opened.graph.layer(op="Neg", inputs=[{"x": 1}])


def test_05_import_export_cleanup_and_sorting_never_ask_for_all_tensors() -> None:
    opened = view(branches())

    def work() -> None:
        opened.graph.cleanup().toposort()
        opened.to_model()

    assert counted(work, gs.Graph.tensors, gs.Graph._local_tensors, gs.Graph._foreign_tensors) == 0


# 6 to 10: algorithms


def test_06_sorting_is_iterative_and_leaves_a_right_order_alone() -> None:
    opened = chain(5000)
    order = list(opened.graph.nodes)
    opened.graph.toposort()
    assert opened.graph.nodes == order
    opened.graph.nodes.reverse()
    opened.graph.toposort()
    assert opened.graph.nodes == order
    wide = view(model("a = Neg(x) b = Abs(a) c = Exp(x) y = Add(b, c)"))
    wide.graph.toposort()
    assert [node.op for node in wide.graph.nodes] == ["Neg", "Abs", "Exp", "Add"]


def test_07_cleanup_removes_the_dead_without_printing_them(capsys: pytest.CaptureFixture[str]) -> None:
    opened = view(model("d = Abs(x) e = Exp(d) y = Neg(x)"))
    printed = counted(opened.graph.cleanup, gs.Node.__str__, gs.Tensor.__str__)
    assert printed == 0
    assert [node.op for node in opened.graph.nodes] == ["Neg"]
    assert [node.op for node in opened.graph.inputs[0].outputs] == ["Neg"]
    assert capsys.readouterr().out == ""


def test_07_cleanup_keeps_inputs_and_what_bodies_capture() -> None:
    opened = view(
        model(
            "h = Neg(x) k = Abs(x) " + BRANCHES, "(float[2,3] x, float[1] unused, bool c) => (float[2,3] y)", "<float w = {1.0}>"
        )
    )
    opened.graph.cleanup()
    assert [node.op for node in opened.graph.nodes] == ["Neg", "If"]
    assert [tensor.name for tensor in opened.graph.inputs] == ["x", "unused", "c"]


def test_08_graphsurgeons_matcher_is_not_used() -> None:
    code = "import sys, rewright.pattern.matcher, rewright.passes.pattern_pass as p; print(hasattr(p, 'GraphPattern'))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_09_a_snapshot_is_a_reference_not_a_copied_graph() -> None:
    loaded = load(branches())
    before = loaded.fingerprint()
    opened = View(loaded)
    opened.graph.nodes[0].op = "Abs"
    assert loaded.fingerprint() == before
    assert opened.to_model().fingerprint() != before


def test_10_nothing_is_printed(tmp_path: Any) -> None:
    onnx.save(branches(), tmp_path / "m.onnx")
    code = (
        "import sys; from rewright.model.load import load; from rewright.model.view import View; "
        "v = View(load(sys.argv[1])); v.graph.copy(); v.graph.cleanup().toposort(); v.to_model().save(sys.argv[2]); "
        "hasattr(v.graph, 'typo')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("", "")


# 11 to 15: what survives


def test_11_export_does_not_touch_the_source() -> None:
    proto = branches()
    source = proto.SerializeToString(deterministic=True)
    loaded = load(proto)
    before = loaded.fingerprint()
    opened = View(loaded)
    opened.graph.state.initializers["w"].name = "renamed"
    add = opened.graph.nodes[0]
    add.domain, add.op = "com.microsoft", "Gelu"
    opened.graph.import_domains.append(helper.make_opsetid("custom", 3))
    made = opened.to_model().proto
    assert [tensor.name for tensor in made.graph.initializer] == ["renamed"]
    assert {entry.domain: entry.version for entry in made.opset_import} == {"": 18, "com.microsoft": 1, "custom": 3}
    assert proto.SerializeToString(deterministic=True) == source
    assert load(proto).fingerprint() == before
    assert loaded.proto.SerializeToString(deterministic=True) == load(proto).session_bytes()


def test_11_a_copied_graph_shares_no_import() -> None:
    opened = view(branches())
    copied = opened.graph.copy()
    copied.import_domains[0].version = 7
    copied.import_domains.append(helper.make_opsetid("custom", 3))
    assert [(entry.domain, entry.version) for entry in opened.graph.import_domains] == [("", 18)]


def test_12_assigning_the_opset_changes_the_export() -> None:
    opened = view(branches())
    opened.graph.opset = 20
    assert [entry.version for entry in opened.to_model().proto.opset_import] == [20]
    assert all(graph.opset == 20 and opened.opset_of(graph) == 20 for graph in opened.graphs())
    assert opened.model.proto.opset_import[0].version == 18


def everything() -> ModelProto:
    """A model with every kind of message that graphsurgeon's round trip loses."""
    proto = branches()
    proto.doc_string, proto.domain, proto.model_version = "doc", "org.example", 7
    proto.metadata_props.add(key="license", value="MIT")
    node = proto.graph.node[0]
    node.doc_string, node.overload = "why", "wide"
    node.metadata_props.add(key="namespace", value="layer.0")
    proto.graph.metadata_props.add(key="g", value="v")
    proto.graph.doc_string = "graph doc"
    proto.graph.input[0].type.denotation = "IMAGE"
    proto.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    proto.graph.input[0].metadata_props.add(key="i", value="v")
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["batch", 3]))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]))
    note = proto.graph.quantization_annotation.add(tensor_name="h")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    proto.training_info.add().initialization.name = "training"
    sparse = proto.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([1.0], np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([2], np.int64)))
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "t")
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [2, 3]))
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    mapping = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    for index, kind in enumerate((optional, sequence, mapping, helper.make_optional_type_proto(sequence))):
        proto.graph.input.append(helper.make_value_info(f"typed{index}", kind))
        proto.graph.output.append(helper.make_value_info(f"typed{index}", kind))
    odd = proto.graph.node.add(op_type="EPContext", name="odd", input=["typed0", ""], output=["o", ""], domain="com.microsoft")
    odd.attribute.extend(
        (
            AttributeProto(name="blob", type=AttributeProto.STRING, s=b"\xff\xfe\x00"),
            AttributeProto(name="blobs", type=AttributeProto.STRINGS, strings=[b"\xff", b"text"]),
            AttributeProto(name="tensors", type=AttributeProto.TENSORS, tensors=[tensor, tensor]),
            AttributeProto(name="type", type=AttributeProto.TYPE_PROTO, tp=optional),
            AttributeProto(name="types", type=AttributeProto.TYPE_PROTOS, type_protos=[optional, sequence]),
            AttributeProto(name="sparse", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse),
            AttributeProto(name="sparses", type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse]),
            AttributeProto(name="tensor", type=AttributeProto.TENSOR, t=tensor, doc_string="attribute doc"),
            AttributeProto(name="empty", type=AttributeProto.INTS),
        )
    )
    graphs = odd.attribute.add(name="graphs", type=AttributeProto.GRAPHS)
    graphs.graphs.add(name="inner").node.add(op_type="Neg", input=["h"], output=["n"])
    proto.opset_import.add(domain="com.microsoft", version=1)
    function = proto.functions.add(name="F", domain="local", overload="wide", doc_string="function doc")
    function.input.append("a")
    function.output.append("b")
    function.attribute.append("alpha")
    function.attribute_proto.append(helper.make_attribute("beta", 2.5))
    function.metadata_props.add(key="f", value="v")
    function.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    function.opset_import.add(domain="", version=17)
    inner = function.node.add(op_type="LeakyRelu", input=["a"], output=["b"])
    inner.attribute.add(name="alpha", ref_attr_name="alpha", type=AttributeProto.FLOAT)
    proto.opset_import.add(domain="local", version=1)
    return proto


def test_13_the_round_trip_loses_nothing() -> None:
    loaded = load(everything())
    assert View(loaded).to_model().session_bytes() == loaded.session_bytes()


def test_13_the_round_trip_loses_no_field_that_this_onnx_does_not_know() -> None:
    unknown = b"\xfa\x3e\x03new"  # field 1007, which no message has
    proto = everything()
    for message in (proto, proto.graph, proto.graph.node[0], proto.functions[0], proto.graph.input[0]):
        message.MergeFromString(unknown)
    assert proto.SerializeToString().count(b"\x03new") == 5
    loaded = load(branches())
    changed = loaded.with_proto(proto)
    assert View(changed).to_model().session_bytes() == changed.session_bytes()


def test_13_what_stands_beside_an_edit_survives_too() -> None:
    opened = view(everything())
    opened.graph.nodes[0].op = "Abs"
    odd = next(node for node in opened.graph.nodes if node.name == "odd")
    odd.attrs["new"] = 1
    opened.functions[0].nodes[0].attrs["alpha"] = 0.5
    made, source = opened.to_model().proto, everything()
    source.graph.node[0].op_type = "Abs"
    next(node for node in source.graph.node if node.name == "odd").attribute.add(name="new", type=AttributeProto.INT, i=1)
    source.functions[0].node[0].attribute[0].CopyFrom(helper.make_attribute("alpha", 0.5))
    assert made == source


def test_13_graphs_in_a_list_are_bodies_like_any_other() -> None:
    opened = view(everything())
    odd = next(node for node in opened.graph.nodes if node.name == "odd")
    assert [graph.name for graph in odd.subgraphs()] == ["inner"]
    h = opened.graph.nodes[0].outputs[0]
    assert any(user.op == "Neg" for user in h.outputs)
    odd.attrs["graphs"][0].nodes[0].op = "Abs"
    attribute = next(a for n in opened.to_model().proto.graph.node if n.name == "odd" for a in n.attribute if a.name == "graphs")
    assert [node.op_type for node in attribute.graphs[0].node] == ["Abs"]


def test_13_inputs_with_defaults_stay_in_the_signature_and_are_not_constants() -> None:
    opened = view(everything())
    assert "w" in [tensor.name for tensor in opened.graph.inputs]
    assert not any(isinstance(tensor, gs.Constant) for tensor in opened.graph.inputs)
    assert [tensor.name for tensor in opened.to_model().proto.graph.initializer] == ["w"]


def test_13_edits_of_the_signature_reach_the_export() -> None:
    opened = view(branches())
    opened.graph.inputs[0].shape = ["batch", 3]
    opened.graph.outputs[0].dtype = np.dtype(np.float16)
    made = opened.to_model().proto.graph
    assert made.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert made.output[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    assert made.input[1] == branches().graph.input[1]


def test_14_copies_keep_types_and_locations() -> None:
    opened = view(everything())
    kinds = {tensor.name: tensor.type for tensor in opened.graph.inputs}
    assert kinds["typed1"] == "sequence_type"
    assert {tensor.name: tensor.type for tensor in opened.graph.copy().inputs} == kinds
    constant = make_constant("c", np.ones(1))
    constant.data_location = TensorProto.EXTERNAL
    assert constant.copy().data_location == TensorProto.EXTERNAL
    variable = make_variable("v")
    variable.shape = [1]
    variable.copy().shape.append(2)
    assert variable.shape == [1]


def test_14_a_copied_graph_exports_what_its_original_does() -> None:
    opened = view(everything())
    opened.graph.nodes[0].attrs["note"] = "edited"
    wanted = opened.to_model().session_bytes()
    original, opened.graph = opened.graph, opened.graph.copy()
    assert opened.graph is not original
    assert all(type(graph) is Graph for graph in (opened.graph, *opened.graph.subgraphs(recursive=True)))
    assert not {id(node) for node in opened.graph.nodes} & {id(node) for node in original.nodes}
    assert opened.to_model().session_bytes() == wanted
    opened.graph.nodes[0].op = "Exp"
    assert original.nodes[0].op == "Neg"


def test_15_outer_weights_are_not_repeated_in_bodies() -> None:
    loaded = load(branches(rows=512))
    opened = View(loaded)
    opened.graph.nodes[0].op = "Abs"
    made = opened.to_model()
    assert [tensor.name for tensor in made.proto.graph.initializer] == ["w"]
    bodies = [attribute.g for attribute in made.proto.graph.node[1].attribute]
    assert [len(body.initializer) for body in bodies] == [0, 0]
    assert abs(made.nbytes() - loaded.nbytes()) < 100


# 16 to 22: folding, copies, weights


def test_16_graphsurgeons_folding_is_refused() -> None:
    opened = view(model("y = Neg(x)"))
    with pytest.raises(PassError, match="constant-folding"):
        opened.graph.fold_constants()


def test_17_deepcopy_copies_the_graph() -> None:
    opened = view(branches())
    made = copy.deepcopy(opened.graph)
    assert type(made) is Graph
    assert made is not opened.graph
    assert [node.op for node in made.nodes] == ["Neg", "If"]
    assert made.nodes[1].inputs[0] is made.inputs[1]
    captured = [tensor for body in made.nodes[1].subgraphs() for node in body.nodes for tensor in node.inputs]
    assert any(tensor is made.nodes[0].outputs[0] for tensor in captured)


@pytest.mark.parametrize("pick", [lambda g: g, lambda g: g.nodes[0], lambda g: g.inputs[0]])
def test_17_pickling_says_what_to_do(pick: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="serialized proto"):
        pickle.dumps(pick(view(branches()).graph))


@pytest.mark.parametrize("pick", [lambda g: g.nodes[0], lambda g: g.inputs[0]])
def test_17_a_node_is_not_copied_out_of_its_graph(pick: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"graph\.copy\(\)"):
        copy.deepcopy(pick(view(branches()).graph))


def test_18_a_typo_is_an_attribute_error_and_registered_ops_work(capsys: pytest.CaptureFixture[str]) -> None:
    opened = view(everything())
    for graph in (opened.graph, opened.functions[0]):
        with pytest.raises(AttributeError, match="'tensor_s'"):
            _ = graph.tensor_s
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")

    @gs.Graph.register()
    def registered_for_this_test(self: Any, x: Any) -> Any:
        return self.layer(op="Neg", inputs=[x], outputs=["n"])

    try:
        (made,) = opened.graph.registered_for_this_test(opened.graph.inputs[0])
        assert made.inputs[0].op == "Neg"
    finally:
        del gs.Graph.GLOBAL_FUNC_MAP["registered_for_this_test"]


def test_19_external_data_is_read_from_the_models_folder_and_written_once(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = branches(rows=512)
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(proto, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    opened = View(load(folder / "m.onnx"))
    weight = opened.graph.state.initializers["w"]
    assert weight.values.shape == (512, 3)
    assert not weight.values.flags.writeable
    opened.to_model().save(tmp_path / "out.onnx")
    onnx.checker.check_model(tmp_path / "out.onnx")
    (written,) = onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    assert written.data_location == TensorProto.EXTERNAL
    assert not written.raw_data


def test_20_a_round_trip_of_large_weights_needs_no_memory(tmp_path: Any) -> None:
    path = tmp_path / "large.onnx"
    proto = model("y = Add(x, w)", "(float[4194304] x) => (float[4194304] y)")
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(4194304, np.float32), "w"))
    for index in range(3):
        proto.graph.initializer.append(numpy_helper.from_array(np.full(4194304, index, np.float32), f"w{index}"))
    onnx.save(proto, path)  # 64 MiB
    code = (
        "import resource, sys; from rewright.model.load import load; from rewright.model.view import View; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "v = View(load(sys.argv[1])); v.graph.nodes[0].op = 'Mul'; v.to_model().save(sys.argv[2]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "out.onnx")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown < 24 * 1024  # KiB
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0
    assert (tmp_path / "out.onnx").stat().st_size == path.stat().st_size


NARROW = {
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.FLOAT8E4M3FN: ml_dtypes.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: ml_dtypes.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    TensorProto.INT4: ml_dtypes.int4,
    TensorProto.UINT4: ml_dtypes.uint4,
    TensorProto.FLOAT4E2M1: ml_dtypes.float4_e2m1fn,
}


@pytest.mark.parametrize("count", [5, 4097])
@pytest.mark.parametrize("kind", NARROW, ids=TensorProto.DataType.Name)
def test_21_narrow_weights_keep_their_bytes(kind: int, count: int, tmp_path: Any) -> None:
    array = (np.arange(count) % 7).astype(np.float32).astype(NARROW[kind])
    tensor = numpy_helper.from_array(array, "q")
    assert tensor.data_type == kind
    proto = model("y = Neg(x)")
    proto.graph.initializer.append(tensor)
    proto.graph.node.append(helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT))
    opened = view(proto)
    held = opened.graph.state.initializers["q"]
    assert held.values.dtype == array.dtype
    np.testing.assert_array_equal(held.values, array)
    opened.graph.nodes[0].op = "Abs"
    opened.to_model().save(tmp_path / "m.onnx")
    (written,) = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert written.raw_data == tensor.raw_data
    held.values = np.array(held.values)  # through numpy and back
    opened.to_model().save(tmp_path / "n.onnx")
    assert onnx.load(tmp_path / "n.onnx").graph.initializer[0] == written


def test_21_export_dtype_narrows_new_constants() -> None:
    opened = view(model("y = Neg(x)"))
    wide = Constant("wide", np.array([1.5, -2.0], np.float32), export_dtype=TensorProto.BFLOAT16)
    out = make_variable("f")
    opened.graph.nodes.append(make_node("Cast", "cast", "", [wide], [out]))
    opened.graph.nodes[-1].attrs["to"] = np.float32
    made = opened.to_model().proto
    assert made.graph.initializer[0].data_type == TensorProto.BFLOAT16
    np.testing.assert_array_equal(numpy_helper.to_array(made.graph.initializer[0]).astype(np.float32), [1.5, -2.0])
    assert made.graph.node[-1].attribute[0].i == TensorProto.FLOAT


def test_22_bodies_are_never_renamed() -> None:
    source = branches()
    made = exported(source)
    names = [[node.output[0] for node in attribute.g.node] for attribute in made.graph.node[1].attribute]
    assert names == [["a", "yt"], ["ye"]]
    assert not hasattr(view(source).graph, "flatten_subgraphs")
