"""Fuzzing: every pass over generated graphs. ``python -m rewright.testing.fuzz --seconds 60 --seed 1``.

``rewright.testing.fuzz.process.fuzz`` is the same in Python, ``checks.Examiner`` judges one graph.
"""
