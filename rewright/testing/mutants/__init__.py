"""Mutation testing of the fusion passes: what each emits is broken in every way, and the gates have to notice.

``python -m rewright.testing.mutants`` runs it over small models of its own, or over exports, and shows which gate caught what.
A gate that has caught nothing for long may be right or asleep; a mutant tells which. See ``rewright.testing.mutants.campaign``.
"""
