"""Passes that let a model compute in narrower floating-point types, and what they share."""
