"""What the tests of wrong rewrites share: a pass that errs at some of its sites, the model that it errs on, and the judge.

Each site of a model computes an output of its own, and every value inside it begins with that output's name: `right0`, `wrong1`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx.parser import parse_model

from rewright.api import Chain
from rewright.model.carrier import Model
from rewright.model.load import load
from rewright.passes.contract import Pass
from rewright.registry.catalog import Catalog
from rewright.report.model import PassReport
from rewright.run import RunResult

NOTHING_ELSE = Catalog([])
RARE = 50  # an id that made-up inputs do not have
HEADER = '<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>'
Site = Mapping[str, Any]
Feeds = dict[str, np.ndarray]

WEIGHTS: dict[str, np.ndarray] = {
    name: np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    for name, shape in {
        "gamma": (8,),
        "beta_of_norm": (8,),
        "bias": (8,),
        "weight": (8, 8),
        "other_weight": (8, 8),
        "table": (64, 8),
    }.items()
} | {
    "rows": np.array([-5, 3, -2, 7, 1, -4, 6, 0.5], np.float32),
    "zeros": np.zeros(8, np.float32),
    "tiny_bias": np.full(8, 9e-4, np.float32),
    "half": np.float32(0.5),
    "one": np.float32(1),
    "two": np.float32(2),
    "three": np.float32(3),
    "root_of_two": np.float32(2**0.5),
    "epsilon_5": np.float32(1e-5),
    "epsilon_12": np.float32(1e-12),
}


@dataclass(frozen=True)
class Mistake:
    """A pass that is right at some sites of a model and wrong at others.

    Attributes:
        step: the pass.
        template: one site's nodes; `{p}` is the name of its output, the other fields are the site's own.
        right, wrong: the fields of the sites at which the pass is right, and at which it errs.
        inputs, prelude: the model's inputs, and nodes that several sites read.
        output: the type of each site's output.
        sites_recorded: how many sites the pass says there were; None if it says one for each.
        is_hidden: whether the outputs of the whole model, on inputs made for it, agree all the same.
        weights: constants beside those that all models may use.
    """

    step: Pass
    template: str
    right: Sequence[Site]
    wrong: Sequence[Site]
    inputs: str = "float[B, S, 8] x"
    prelude: str = ""
    output: str = "float[B, S, 8]"
    sites_recorded: int | None = None
    is_hidden: bool = False
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17

    @property
    def name(self) -> str:
        return self.step.name

    @property
    def sites(self) -> dict[str, Site]:
        """The sites by their outputs; wrong ones come first and last, so that no bisection is lucky."""
        right = {f"right{index}": site for index, site in enumerate(self.right)}
        wrong = {f"wrong{index}": site for index, site in enumerate(self.wrong)}
        first = dict(itertools.islice(wrong.items(), 1))
        return first | right | wrong

    @property
    def wrong_outputs(self) -> set[str]:
        """The outputs of the sites at which the pass errs."""
        return {name for name in self.sites if name.startswith("wrong")}

    @property
    def proto(self) -> onnx.ModelProto:
        body = self.prelude + "".join(self.template.format(p=name, **site) for name, site in self.sites.items())
        known = WEIGHTS | dict(self.weights)
        used = {word: known[word] for word in dict.fromkeys(re.findall(r"\w+", body)) if word in known}
        held = ", ".join(_initializer(name, array) for name, array in used.items())
        outputs = ", ".join(f"{self.output} {name}" for name in self.sites)
        text = f"{HEADER.format(opset=self.opset)} g ({self.inputs}) => ({outputs}) <{held}> {{ {body} }}"
        proto = parse_model(text)
        for node in proto.graph.node:
            node.name = node.output[0]
        return proto

    def run(self, **options: Any) -> RunResult:
        return Chain([self.step], catalog=NOTHING_ELSE).run(self.proto, **options)


def _initializer(name: str, array: np.ndarray) -> str:
    dtype = {"float32": "float", "bool": "bool", "int64": "int64", "float64": "double"}[array.dtype.name]
    dims = f"[{','.join(map(str, array.shape))}]" if array.ndim else ""
    return f"{dtype}{dims} {name} = {{{','.join(_literal(item) for item in array.reshape(-1).tolist())}}}"


def _literal(item: float) -> str:
    return str(int(item)) if isinstance(item, (bool, int)) else repr(item)


def adversarial_feeds(model: onnx.ModelProto) -> list[Feeds]:
    """Feeds on which the mistakes show: flat and steep rows, far offsets, masks of every kind, whole ranges of integers."""
    made = []
    for trial, (batch, length) in enumerate([(2, 5), (1, 4), (3, 2), (2, 7), (1, 1), (2, 6), (1, 3), (2, 2)]):
        rng = np.random.default_rng(trial)
        feeds: Feeds = {}
        for value in model.graph.input:
            kind = value.type.tensor_type
            symbols = {"B": batch, "S": length, "T": length}
            shape = [dim.dim_value or symbols[dim.dim_param] for dim in kind.shape.dim]
            if kind.elem_type == onnx.TensorProto.FLOAT:
                feeds[value.name] = _floats(rng, shape, trial)
            elif kind.elem_type == onnx.TensorProto.BOOL:
                feeds[value.name] = np.asarray(rng.random(shape) < 0.6)
            else:
                feeds[value.name] = rng.choice([0, 1, 2, 3, RARE] if trial % 3 else [RARE], shape).astype(np.int64)
        made.append(feeds)
    return made


def _floats(rng: np.random.Generator, shape: Sequence[int], trial: int) -> np.ndarray:
    normal = rng.standard_normal(shape)
    opposite = -WEIGHTS["rows"] if shape[-1:] == [8] else 0.0
    scaled = (
        normal,
        0.01 + 1e-4 * normal,
        40 * normal,
        3 + normal,
        500 * normal,
        1e-3 * normal,
        0 * normal,
        opposite + 1e-4 * normal,
    )
    return scaled[trial % len(scaled)].astype(np.float32)


def outputs_of(model: Model, feeds: Feeds) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes with its own optimizations switched off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", Model.SESSION_FOLDER)
    options.log_severity_level = 4
    session = ort.InferenceSession(model.session_bytes(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def outputs_that_differ(original: onnx.ModelProto, result: Model) -> set[str]:
    """The outputs that are not the original's on one of the adversarial feeds."""
    before, found = load(original), set()
    for feeds in adversarial_feeds(original):
        wanted, got = outputs_of(before, feeds), outputs_of(result, feeds)
        assert wanted.keys() == got.keys()
        for name, reference in wanted.items():
            largest = float(np.nanmax(np.abs(reference), initial=0.0)) if reference.dtype.kind == "f" else 0.0
            if not np.allclose(got[name], reference, rtol=1e-4, atol=2e-5 * max(largest, 1e-3), equal_nan=True):
                found.add(name)
    return found


def undone(record: PassReport) -> set[str]:
    """The outputs of the sites that were undone."""
    return _outputs_of_sites(record, "rolled-back")


def kept(record: PassReport) -> set[str]:
    """The outputs of the sites that were kept."""
    return _outputs_of_sites(record, "kept")


def _outputs_of_sites(record: PassReport, status: str) -> set[str]:
    names = {label for site in record.sites if site.status == status for label in (*site.removed, *site.added)}
    return {found[0] for name in names if (found := re.search(r"(right|wrong)\d+", name))}
