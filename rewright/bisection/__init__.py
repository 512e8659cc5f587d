"""Finding the pass of a chain that makes a model wrong, what of the pass it is, and the first value that is wrong.

Passes are applied without checks and every model on the way is kept. The shortest chain after which the model differs from the
original is then found by halving, and confirmed by its neighbours: with one pass less the model agrees, with it it does not. The
changes of that pass are narrowed down the same way, and what the wrong ones make of the model is followed from the outputs back
to the first value that differs.
"""

from rewright.bisection.record import Application, Bisection, Change, Culprit, Trial
from rewright.bisection.search import bisect

__all__ = ["Application", "Bisection", "Change", "Culprit", "Trial", "bisect"]
