"""A model with all of its weights in it, and a hash of that: independent of where weights lie during a run."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto

from rewright.model.carrier import Model


def whole(model: Model) -> ModelProto:
    """The model as one proto."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.save(path, external_data=False)
        return onnx.load(path)


def digest(model: Model) -> str:
    """Equal for models that are equal, weights included."""
    return hashlib.blake2b(whole(model).SerializeToString(deterministic=True), digest_size=16).hexdigest()
