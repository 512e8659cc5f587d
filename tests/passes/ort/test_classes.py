"""Single fusion classes of onnxruntime.transformers, each run alone on a skeleton, as the worker process does."""

from __future__ import annotations

import inspect
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

import rewright
from rewright.model.carrier import all_graphs
from rewright.model.load import load
from rewright.model.weights import location_of, point_to
from rewright.passes.ort import classes
from rewright.passes.ort.carrying import with_shapes
from rewright.passes.ort.fusion_classes import FUSION_CLASSES, ClassOptions, FusionClass
from rewright.passes.ort.fusion_model import model_class, transformers_module
from rewright.passes.ort.head_sizes import head_sizes
from rewright.passes.ort.proto_weights import ProtoWeights
from rewright.passes.ort.session import OrtSession
from rewright.passes.session import PassSession

ZOO = Path(__file__).parents[2] / "zoo"
BERT = ZOO / "bert.ts17.sdpa.onnx"

GELU = """
    s = Div(x, sqrt2)
    e = Erf(s)
    a = Add(e, one)
    m = Mul(x, a)
    y = Mul(m, half)
"""
CONSTANTS = "float sqrt2 = {1.4142135}, float one = {1}, float half = {0.5}"


def model_of(text: str, opset: int = 17) -> ModelProto:
    return parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')


def run(source: Path | ModelProto, folder: Path, *names: str, **more: Any) -> dict[str, Any]:
    model = load(source)
    arguments = {"root": model.SESSION_FOLDER, "folder": str(folder), "classes": list(names), **more}
    return classes.run(with_stated_shapes(model.proto).SerializeToString(), arguments)


def with_stated_shapes(proto: ModelProto) -> ModelProto:
    """onnx's own inference, which is enough for small models."""
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def ops(path: str | Path | ModelProto) -> Counter[str]:
    proto = path if isinstance(path, ModelProto) else onnx.load(path)
    return Counter(node.op_type for graph in all_graphs(proto) for node in graph.node)


def outputs(model: str | Path | ModelProto, feeds: Mapping[str, np.ndarray]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model.SerializeToString() if isinstance(model, ModelProto) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]).run(None, feeds)


# The table.


@pytest.mark.parametrize("name", FUSION_CLASSES)
def test_the_table_says_what_the_installed_classes_say(name: str, tmp_path: Path) -> None:
    entry = FUSION_CLASSES[name]
    owner = model_class(transformers_module("onnx_model").OnnxModel, ProtoWeights("/", str(tmp_path)))
    made = entry.make(name, owner(model_of(f"g (float[N,4] x) => (float[N,4] y) <{CONSTANTS}> {{ {GELU} }}")), ClassOptions())
    if entry.made == "step":
        assert callable(made.apply)
        return
    assert tuple(made.search_op_types) == entry.anchors
    fused = made.fused_op_type
    assert not fused or fused in {op.rpartition("::")[2] for op in (*entry.emits, *entry.anchors)} | {"Shape"}


def test_the_table_has_every_class_that_the_installed_version_has() -> None:
    """A class that a new version brings fails here."""
    folder = Path(str(import_module("onnxruntime.transformers").__file__)).parent
    base = transformers_module("fusion_base").Fusion
    found = set()
    for module in pkgutil.iter_modules([str(folder)]):
        if module.name.startswith(("fusion_", "onnx_model_")):
            members = inspect.getmembers(transformers_module(module.name), inspect.isclass)
            found |= {name for name, member in members if issubclass(member, base) and member.__module__ == module.name}
    only_bases = {"Fusion", "FusionGptAttentionPastBase", "FusionEmbedLayerNoMask"}
    of_phi_only = {name for name in found if name.startswith("Fission")}
    assert found - only_bases - of_phi_only == {name.partition(":")[0] for name in FUSION_CLASSES} - {"FusionUtils"}


def test_flags_and_masks_reach_the_classes(tmp_path: Path) -> None:
    owner = model_class(transformers_module("onnx_model").OnnxModel, ProtoWeights("/", str(tmp_path)))
    model = owner(model_of("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"))
    options = ClassOptions(4, 32, "index", use_multi_head_attention=True)
    made = FUSION_CLASSES["FusionAttention"].make("FusionAttention", model, options)
    assert (made.num_heads, made.hidden_size, made.use_multi_head_attention) == (4, 32, True)
    assert made.attention_mask.mask_format == transformers_module("fusion_options").AttentionMaskFormat.MaskIndexEnd
    assert FUSION_CLASSES["FusionBiasGelu:fast"].make("FusionBiasGelu:fast", model, options).fused_op_type == "FastGelu"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["FusionGelus"], {}, "no fusion class 'FusionGelus'.* did you mean FusionGelu"),
        (["Nothing"], {}, "the known ones are FusionGelu, "),
        (["FusionGelu"], {"mask_format": "left"}, "mask format 'left' is none of raw, index"),
        (["FusionGelu"], {"num_heads": 5, "hidden_size": 32}, "hidden_size 32 is no multiple of num_heads 5"),
    ],
)
def test_what_is_unknown_is_an_error(names: list[str], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(BERT, tmp_path, *names, options=options)


def test_a_class_that_the_installed_version_lacks_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"FusionGelu": FusionClass("fusion_gelu_of_tomorrow", (), ()), "FusionErf": FusionClass("fusion_gelu", (), ())}
    monkeypatch.setattr("rewright.passes.ort.fusion_classes.FUSION_CLASSES", table)
    with pytest.raises(ValueError, match=r"onnxruntime [\d.]+ has no usable onnxruntime.transformers.fusion_gelu_of_tomorrow"):
        run(BERT, tmp_path, "FusionGelu")
    assert (
        "has no fusion class FusionErf in onnxruntime.transformers.fusion_gelu"
        in run(BERT, tmp_path, "FusionErf")["errors"]["FusionErf"]
    )


# What a class leaves.


def test_a_class_changes_what_it_fuses_and_nothing_else(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reply = run(BERT, tmp_path, "FusionGelu")
    assert reply["fired"] == {"FusionGelu": 2}
    assert (reply["errors"], reply["left_out"], reply["notes"]) == ({}, {}, [])
    assert capfd.readouterr() == ("", "")
    before, after = onnx.load(BERT), onnx.load(reply["path"])
    lost, new = ops(before) - ops(after), ops(after) - ops(before)
    assert new == {"Gelu": 2}
    assert lost == {"Div": 2, "Erf": 2, "Add": 2, "Mul": 4, "Constant": 6}
    names = {node.name: node for node in before.graph.node}
    assert all(node == names[node.name] for node in after.graph.node if node.op_type != "Gelu")
    assert (after.graph.input, after.graph.output, after.graph.name) == (
        before.graph.input,
        before.graph.output,
        before.graph.name,
    )
    assert {entry.domain: entry.version for entry in after.opset_import} == {"": 17, "com.microsoft": 1}
    onnx.checker.check_model(after)
    assert rewright.verify(BERT, reply["path"]).equal


def test_classes_run_in_order_each_on_what_the_one_before_left(tmp_path: Path) -> None:
    model = model_of(f"""g (float[B,3,4] x0, float[B,3,4] r) => (float[B,3,4] z) <{CONSTANTS}> {{
        p = MatMul(x0, w) x = Add(p, b) {GELU} z = Add(y, r) }}""")
    values = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    model.graph.initializer.extend([numpy_helper.from_array(values, "w"), numpy_helper.from_array(values[0].copy(), "b")])
    alone = run(model, tmp_path, "FusionBiasGelu")
    assert (alone["fired"], alone["path"]) == ({}, "")
    reply = run(model, tmp_path, "FusionGelu", "FusionBiasGelu")
    assert reply["fired"] == {"FusionGelu": 1, "FusionBiasGelu": 1}
    assert ops(reply["path"]) == {"MatMul": 1, "BiasGelu": 1, "Add": 1}


@pytest.mark.parametrize(
    ("other", "fires"), [(["B", "S", 4], True), (["B", "T", 4], False), (["B", None, 4], False), ([1, "S", 4], True)]
)
def test_dimensions_are_equal_if_their_names_are(other: list[Any], fires: bool, tmp_path: Path) -> None:
    model = model_of("""g (float[B,S,4] x, float[B,S,4] r) => (float[B,S,4] y) {
        t = Relu(x) u = Neg(r) a = Add(t, u) y = LayerNormalization<epsilon: float = 1e-5>(a, g, b) }""")
    model.graph.initializer.extend(numpy_helper.from_array(np.ones(4, np.float32), name) for name in ("g", "b"))
    arguments = {"root": "/", "folder": str(tmp_path), "classes": ["FusionSkipLayerNormalization"]}
    assert classes.run(model.SerializeToString(), arguments)["fired"] == {}
    for name, dims in (("t", ["B", "S", 4]), ("u", other)):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    assert bool(classes.run(model.SerializeToString(), arguments)["fired"]) is fires


def test_what_is_in_the_way_of_attention_is_cleared_away_for_it_alone(tmp_path: Path) -> None:
    """Casts to the type that is there already hide it; those that it does not take in stay, and so do residual sums."""
    source = load(ZOO / "roberta.ts17.sdpa.onnx")
    given = with_shapes(PassSession(OrtSession(), source), source.session_bytes())
    arguments = {"root": source.SESSION_FOLDER, "folder": str(tmp_path), "classes": ["FusionAttention"]}
    reply = classes.run(given, arguments)
    assert reply["fired"] == {"FusionAttention": 2}
    lost, new = ops(source.proto) - ops(reply["path"]), ops(reply["path"]) - ops(source.proto)
    assert new == {"Attention": 2}
    assert lost["Softmax"] == 2
    assert {"LayerNormalization", "Erf", "Gemm"}.isdisjoint(lost)
    assert rewright.verify(source, reply["path"]).equal
    casts = classes.run(given, {**arguments, "classes": ["FusionUtils:casts"]})
    assert ops(source.proto) - ops(casts["path"]) == {"Cast": casts["fired"]["FusionUtils:casts"]}


def test_sizes_are_found_from_the_shapes_around_softmaxes() -> None:
    model = model_of("""g (float[B,4,S,8] q, float[B,4,8,S] k, float[B,1,S,S] mask) => (float[B,4,S,S] p)
        { a = MatMul(q, k) c = Mul(a, a) d = Add(c, mask) p = Softmax(d) }""")
    assert head_sizes(model) == (4, 32)
    model.graph.input[0].type.tensor_type.shape.dim[3].Clear()
    assert head_sizes(model) == (0, 0)


# What goes wrong costs what it touches.


def test_a_node_at_which_a_class_raises_costs_no_other(tmp_path: Path) -> None:
    model = model_of("""g (float[N,4] x, float[N,4] z) => (float[N,4] y, float[N,4] v) <float c = {1.702}> {
        [sigmoid_of_a_product] a = Mul(x, z) b = Sigmoid(a) [wrong] y = Mul(x, b)
        d = Mul(x, c) e = Sigmoid(d) [right] v = Mul(x, e) }""")
    reply = run(model, tmp_path, "FusionQuickGelu")
    assert reply["fired"] == {"FusionQuickGelu": 1}
    ((place, reason),) = reply["left_out"]["FusionQuickGelu"].items()
    assert place in ("wrong", "y")
    assert "AttributeError" in reason
    assert "(in fusion_quickgelu.py, line " in reason
    assert reply["notes"] == [f"FusionQuickGelu raised at {place}, which it therefore left alone: {reason}"]
    feeds = {name: np.random.default_rng(1).standard_normal((2, 4)).astype(np.float32) for name in "xz"}
    for one, other in zip(outputs(model, feeds), outputs(reply["path"], feeds), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_class_that_cannot_start_changes_nothing(tmp_path: Path) -> None:
    model = model_of(f"""g (float[N,4] x) => (float[N,4] y, float[400] k) <{CONSTANTS}> {{
        {GELU} k = Constant<value: tensor = float[400] {{{", ".join(["1"] * 400)}}}>() }}""")
    value = model.graph.node[-1].attribute[0].t
    weight = tmp_path / "weight"
    weight.write_bytes(numpy_helper.to_array(value).tobytes())
    value.ClearField("float_data")
    point_to(value, location_of(weight), 0, 1600)
    arguments = {"root": "/", "folder": str(tmp_path), "classes": ["FusionGelu"]}
    reply = classes.run(model.SerializeToString(), {**arguments, "most_bytes": 1000})
    assert reply["errors"] == {"FusionGelu": "TooManyWeights: it reads more than 1000 bytes of weights"}
    assert (reply["path"], reply["fired"]) == ("", {})
    reply = classes.run(model.SerializeToString(), arguments)
    assert (reply["errors"], reply["fired"]) == ({}, {"FusionGelu": 1})
    assert outputs(reply["path"], {"x": np.ones((1, 4), np.float32)})[1].tolist() == [1.0] * 400


def test_a_value_that_the_graph_gives_is_not_fused_away(tmp_path: Path) -> None:
    model = model_of(f"g (float[N,4] x) => (float[N,4] y, float[N,4] e) <{CONSTANTS}> {{ {GELU} }}")
    assert run(model, tmp_path, "FusionGelu")["fired"] == {}


def test_what_a_body_captures_is_made_before_it(tmp_path: Path) -> None:
    model = model_of(f"""g (float[N,4] x, bool c) => (float[N,4] z) <{CONSTANTS}> {{ {GELU}
        z = If (c) <
            then_branch = same () => (float[N,4] t) {{ t = Neg(y) }},
            else_branch = same () => (float[N,4] t) {{ t = Abs(y) }}> }}""")
    reply = run(model, tmp_path, "FusionGelu")
    after = onnx.load(reply["path"])
    assert [node.op_type for node in after.graph.node] == ["Gelu", "If"]
    assert [graph.name for graph in all_graphs(after)][1:] == ["same", "same"]
    onnx.checker.check_model(after)


def test_a_gelu_in_a_body_is_fused_in_its_body(tmp_path: Path) -> None:
    model = model_of(f"""g (float[N,4] x, bool c) => (float[N,4] z) <{CONSTANTS}> {{
        z = If (c) <
            then_branch = b () => (float[N,4] y) {{ {GELU} }},
            else_branch = b () => (float[N,4] t) {{ t = Abs(x) }}> }}""")
    reply = run(model, tmp_path, "FusionGelu")
    branches = {attribute.name: attribute.g for attribute in onnx.load(reply["path"]).graph.node[0].attribute}
    assert [node.op_type for node in branches["then_branch"].node] == ["Gelu"]
    assert [node.op_type for node in branches["else_branch"].node] == ["Abs"]


def test_neither_torch_nor_sympy_is_imported(tmp_path: Path) -> None:
    code = """
import sys
for name in ("torch", "sympy", "transformers", "optimum", "onnxscript"):
    sys.modules[name] = None  # importing it raises
from rewright.model.load import load
from rewright.model.weights import location_of, point_to
from rewright.passes.ort import classes
from rewright.passes.ort.carrying import with_shapes
from rewright.passes.ort.fusion_classes import FUSION_CLASSES
model = load(sys.argv[1])
reply = classes.run(model.session_bytes(), {"root": "/", "folder": sys.argv[2], "classes": list(FUSION_CLASSES)})
assert reply["errors"] == {}, reply["errors"]
assert reply["fired"]["FusionGelu"] == 2, reply["fired"]
"""
    subprocess.run([sys.executable, "-c", code, str(BERT), str(tmp_path)], check=True, capture_output=True, text=True)
