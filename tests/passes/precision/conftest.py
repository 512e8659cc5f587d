"""Makes precision_harness.py importable."""
