"""Optimum's options for optimization, read from its objects and files, and compiled to chains.

from rewright.integrations.optimum import AutoOptimizationConfig, compile

compiled = compile(AutoOptimizationConfig.O2(disable_gelu_fusion=True))
print(compiled.chain)
"""

from rewright.integrations.optimum.compiling import CompiledConfig, compile
from rewright.integrations.optimum.messages import Message
from rewright.integrations.optimum.options import AutoOptimizationConfig, OptimizationConfig
from rewright.integrations.optimum.ort_config import save_ort_config

__all__ = ["AutoOptimizationConfig", "CompiledConfig", "Message", "OptimizationConfig", "compile", "save_ort_config"]
