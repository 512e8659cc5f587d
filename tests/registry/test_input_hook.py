"""A plugin says what a model is to be compared on."""

import sys
from types import ModuleType

import numpy as np
import onnx
import pytest

import rewright
from rewright.model.errors import PluginError
from rewright.model.load import load
from rewright.registry.catalog import Catalog

ROW = {"x": np.arange(-2, 2, dtype=np.float32)[None]}


@pytest.fixture
def model():
    return load(
        onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 17]> g (float[B, 4] x) => (float[B, 4] y) { y = Relu(x) }')
    )


@pytest.fixture
def catalog(monkeypatch):
    """A catalog with one module of that name for each implementation of the hook, in that order."""

    def made(**hooks):
        for name, function in hooks.items():
            module = ModuleType(name)
            function.__name__ = "rewright_input_sets"
            module.rewright_input_sets = rewright.hookimpl(function)
            monkeypatch.setitem(sys.modules, name, module)
        return Catalog.load(tuple(hooks), autoload=False)

    return made


def test_the_first_plugin_that_knows_the_model_is_taken(catalog, model):
    asked = []
    found = catalog(
        shy_inputs=lambda model: asked.append(model.proto.graph.input[0].name),
        row_inputs=lambda model: [ROW],
        late_inputs=lambda model: pytest.fail("asked although another plugin had answered"),
    ).input_sets(model)
    assert asked == ["x"]
    source, record = found
    assert source == [ROW]
    assert record.name == "row_inputs"


def test_without_an_answer_there_is_none(catalog, model):
    assert catalog(shy_inputs=lambda model: None).input_sets(model) is None
    assert Catalog.load(autoload=False).input_sets(model) is None


def test_an_implementation_may_leave_the_argument_out(catalog, model):
    assert catalog(row_inputs=lambda: [ROW]).input_sets(model)[0] == [ROW]


def test_a_hook_that_fails_is_named(catalog, model):
    def fails(model):
        raise ValueError("no such file")

    with pytest.raises(PluginError, match="plugin bad_inputs: rewright_input_sets fails with ValueError: no such file"):
        catalog(bad_inputs=fails).input_sets(model)
