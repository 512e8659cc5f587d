"""Hugging Face directories: optimize or quantize all models of one, and write one that ``ORTModelFor….from_pretrained`` loads.

from rewright.integrations.huggingface import optimize, quantize

optimize("exported", "optimized", "O2").report.show()
quantize("exported", "quantized", "avx2").report.show()
"""

from rewright.integrations.huggingface.optimizing import optimize
from rewright.integrations.huggingface.quantizing import quantize
from rewright.integrations.huggingface.rewriting import DirectoryGateError, DirectoryResult

__all__ = ["DirectoryGateError", "DirectoryResult", "optimize", "quantize"]
