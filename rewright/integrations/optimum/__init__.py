"""Optimum's options for optimization and quantization, read from its objects and files, and compiled to chains.

from rewright.integrations.optimum import AutoOptimizationConfig, AutoQuantizationConfig, compile, compile_quantization

print(compile(AutoOptimizationConfig.O2(disable_gelu_fusion=True)).chain)
print(compile_quantization(AutoQuantizationConfig.avx2(is_static=False)).chain)
"""

from rewright.integrations.optimum.calibration import AutoCalibrationConfig, CalibrationConfig
from rewright.integrations.optimum.compiling import CompiledConfig, compile
from rewright.integrations.optimum.messages import Message
from rewright.integrations.optimum.options import AutoOptimizationConfig, OptimizationConfig
from rewright.integrations.optimum.ort_config import save_ort_config
from rewright.integrations.optimum.quantization import AutoQuantizationConfig, QuantizationConfig
from rewright.integrations.optimum.quantizing import CompiledQuantization, compile_quantization

__all__ = [
    "AutoCalibrationConfig",
    "AutoOptimizationConfig",
    "AutoQuantizationConfig",
    "CalibrationConfig",
    "CompiledConfig",
    "CompiledQuantization",
    "Message",
    "OptimizationConfig",
    "QuantizationConfig",
    "compile",
    "compile_quantization",
    "save_ort_config",
]
