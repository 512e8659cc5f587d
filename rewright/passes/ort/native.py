"""The child's side of ONNX Runtime's session optimizer: one model in, one file out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

_EXTERNAL_FROM_BYTES: Final = 1024


def optimize(model: bytes, arguments: dict[str, Any]) -> str:
    """Lets ONNX Runtime write the optimized model into a folder; large weights go to a file beside it.

    Args:
        model: a serialized ModelProto.
        arguments: "folder" to write to; "root", what external data is relative to; "level", the name of a
            GraphOptimizationLevel; "disabled", names of optimizers; "entries", more session configuration as [key, value].

    Returns:
        the path of the file; empty where ONNX Runtime has written none.

    Raises:
        Exception: what ONNX Runtime says of a model that it cannot load.
    """
    import onnxruntime as ort

    target = Path(arguments["folder"]) / "optimized.onnx"
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, arguments["level"])
    options.optimized_model_filepath = str(target)
    for key, value in (
        ("session.model_external_initializers_file_folder_path", arguments["root"]),
        ("session.disable_prepacking", "1"),
        ("session.optimized_model_external_initializers_file_name", "optimized.onnx.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(_EXTERNAL_FROM_BYTES)),
        *arguments["entries"],
    ):
        options.add_session_config_entry(key, value)
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=arguments["disabled"])
    return str(target) if target.is_file() else ""
