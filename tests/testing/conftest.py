"""Loads what the tests of the kit run in this process, once.

pytester forgets the modules that a run in this process was the first to import, and native ones do not survive a second import.
"""

import onnx  # noqa: F401
import onnxruntime  # noqa: F401

from rewright.testing import conformance, random_graphs  # noqa: F401
