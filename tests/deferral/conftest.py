"""The tables reuse what other rooms of the tests write graphs with."""

import sys
from pathlib import Path

TESTS = Path(__file__).parent.parent
for folder in ("soundness", "passes/fusion", "passes/attention"):
    if str(TESTS / folder) not in sys.path:
        sys.path.append(str(TESTS / folder))
