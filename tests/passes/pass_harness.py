"""What the tests of passes share: run a pass, look at the result, compare two models on ONNX Runtime as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx.parser import parse_model

from rewright.model.carrier import Model, stubs
from rewright.model.load import load
from rewright.passes.contract import Pass
from rewright.passes.session import PassSession

ZOO = Path(__file__).parent.parent / "zoo"
Feeds = dict[str, np.ndarray[Any, Any]]


def as_model(source: str | Path | onnx.ModelProto | Model) -> Model:
    """A model from ONNX text, a path, a proto, or a model."""
    return load(parse_model(source) if isinstance(source, str) else source)


def run_pass(current: Pass, source: Any, target: Any = "cpu") -> tuple[PassSession, Model]:
    """Applies a pass once; the result is checked by the onnx checker, and its signature has to be the same."""
    session = PassSession(current, as_model(source), target)
    current.apply(session)
    after = session.result or session.view.to_model()
    assert list(after.proto.graph.input) == list(session.model.proto.graph.input)
    assert list(after.proto.graph.output) == list(session.model.proto.graph.output)
    # The checker looks for the stubs' files in the working directory, and knows no ops of ONNX Runtime.
    if all(map(is_standard, after.op_counts())) and not any(stubs(after.proto)):
        onnx.checker.check_model(after.proto)
    return session, after


def is_standard(key: str) -> bool:
    """Whether onnx has a schema for an op, as "ai.onnx::Relu"."""
    domain, op = key.split("::")
    return domain == "ai.onnx" and onnx.defs.has(op)


def run(model: Model, feeds: Feeds) -> list[Any]:
    """The outputs, computed with every optimization of ONNX Runtime switched off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", Model.SESSION_FOLDER)
    # Packed weights are summed in another order than computed ones, which would hide what a pass changed behind rounding.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    session = ort.InferenceSession(model.session_bytes(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def parity(before: Any, after: Model, feeds: Feeds, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Both models give the same outputs: same count, dtype, shape and, by default, the same bits."""
    for expected, actual in zip(run(as_model(before), feeds), run(after, feeds), strict=True):
        assert expected.dtype == actual.dtype
        assert expected.shape == actual.shape
        if rtol or atol:
            np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(actual, expected)
            assert expected.dtype.kind != "f" or np.array_equal(np.signbit(actual), np.signbit(expected))


def ops(model: Model) -> list[str]:
    """The ops of the main graph, in order."""
    return [node.op_type for node in model.proto.graph.node]


def zoo_feeds(model: Model, batch: int = 2, length: int = 6, seed: int = 0) -> Feeds:
    """Inputs for a model of the zoo: ids below 100, a mask padded on the right, images."""
    rng, feeds = np.random.default_rng(seed), {}
    for value in model.proto.graph.input:
        if value.name == "pixel_values":
            feeds[value.name] = rng.standard_normal((batch, 3, 16, 16)).astype(np.float32)
        elif "mask" in value.name:
            feeds[value.name] = (np.arange(length) < length - np.arange(batch)[:, None]).astype(np.int64)
        else:
            feeds[value.name] = rng.integers(0, 2 if "type" in value.name else 100, (batch, length), dtype=np.int64)
    return feeds
