"""What passes say about ONNX Runtime: the optimizers and classes that they name are the installed version's."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from rewright.ops.contract import CONTRACTS
from rewright.passes.ort import optimizers
from rewright.registry.catalog import Catalog

CATALOG = Catalog.load(autoload=False)
DEFERRED = {name: CATALOG.get(name).ort for name in CATALOG if CATALOG.get(name).ort is not None}
CARRIED = {name: ort for name, ort in DEFERRED.items() if not ort.declines}
CLASSES = sorted({entry.partition(":")[0] for ort in CARRIED.values() for entry in ort.classes})


@cache
def modules_with_classes() -> dict[str, str]:
    """The classes of ``onnxruntime.transformers`` by name, without importing any of it."""
    (folder,) = importlib.util.find_spec("onnxruntime").submodule_search_locations
    found = {}
    for path in sorted(Path(folder, "transformers").glob("fusion_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name] = path.stem
    return found


def test_every_pass_of_rewright_says_what_onnx_runtime_makes_of_it():
    silent = [name for name in CATALOG if CATALOG.get(name).ort is None and CATALOG.get(name).backends == ("standalone",)]
    assert not silent, f"declare ort = Deferral(...) or Deferral(declines=...) in {silent}"


@pytest.mark.parametrize("name", DEFERRED)
def test_a_pass_is_carried_out_or_declined_and_has_the_backends_that_follow(name):
    ort, backends = DEFERRED[name], CATALOG.get(name).backends
    assert bool(ort.declines) != bool(ort.optimizers or ort.classes)
    assert backends == (("standalone",) if ort.declines else ("standalone", "ort", "auto"))


@pytest.mark.parametrize("name", CARRIED)
def test_the_session_optimizers_are_known_by_name(name):
    unknown = [item for item in CARRIED[name].optimizers if item not in optimizers.KNOWN]
    assert not unknown, f"{name} names {unknown}; see rewright.passes.ort.optimizers"


def test_the_fusion_classes_are_there():
    missing = [name for name in CLASSES if name not in modules_with_classes()]
    assert not missing, f"the installed onnxruntime.transformers has no {missing}"


def test_the_fusion_classes_can_be_imported_where_torch_and_sympy_are_not():
    where = {name: modules_with_classes()[name] for name in CLASSES}
    code = f"""
import importlib, json, os, sys
import onnxruntime
for banned in ("torch", "transformers", "sympy", "optimum"):
    sys.modules[banned] = None
sys.path.insert(0, os.path.join(os.path.dirname(onnxruntime.__file__), "transformers"))
failed = {{}}
for name, module in json.loads({json.dumps(where)!r}).items():
    try:
        getattr(importlib.import_module(module), name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps(failed))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {}


@pytest.mark.parametrize("name", CARRIED)
def test_what_may_be_put_in_is_what_the_pass_emits_or_a_standard_op(name):
    """Else a model could hold an op that neither the report's reader nor the target's kernels are prepared for."""
    emitted = {op.replace("::", ".").removeprefix("ai.onnx.") for op in CATALOG.get(name).emits}
    foreign = [op for op in CARRIED[name].makes if "::" in op and op.replace("::", ".") not in emitted]
    assert not foreign, f"{name} lets ONNX Runtime put in {foreign}, and does not emit it"
    assert all(op in CONTRACTS for op in CARRIED[name].makes if "::" in op)
