"""Passes: the contract, its kinds, and the built-in passes, one per file."""
