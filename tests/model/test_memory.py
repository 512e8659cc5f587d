"""The peak of a process is its own, whatever the one that started it holds."""

from __future__ import annotations

import subprocess
import sys

import numpy as np


def test_what_the_starting_process_holds_does_not_count() -> None:
    ballast = np.ones(300_000_000, np.uint8)
    code = "from rewright.model.memory import rss_peak; print(rss_peak())"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) < 250_000_000
    code = "import numpy, rewright.model.memory as m; a = numpy.ones(300_000_000, numpy.uint8); del a; print(m.rss_peak())"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) > 300_000_000
    assert ballast.all()
