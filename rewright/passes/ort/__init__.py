"""Passes of this kind, one per file."""
