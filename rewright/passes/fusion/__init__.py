"""Fusions: several ops become one that computes the same."""
