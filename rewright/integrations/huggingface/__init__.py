"""Hugging Face directories: optimize all models of one, and write one that ``ORTModelFor….from_pretrained`` loads.

from rewright.integrations.huggingface import optimize

optimize("exported", "optimized", "O2").report.show()
"""

from rewright.integrations.huggingface.optimizing import DirectoryGateError, DirectoryResult, optimize

__all__ = ["DirectoryGateError", "DirectoryResult", "optimize"]
