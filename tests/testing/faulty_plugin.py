"""A plugin of passes that each do one thing that a pass must not do, for the fuzzer to find."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rewright import PatternPass, graph_pass, hookimpl


class WrongNumbers(PatternPass):
    """Tanh(x) -> Sigmoid(x)."""

    name = "wrong-numbers"

    def pattern(self, op, x):
        return op.Tanh(x)

    def rewrite(self, op, x):
        return op.Sigmoid(x)


class TooRough(PatternPass):
    """Tanh(x) -> Softsign(x), as an approximation."""

    name = "too-rough"
    exactness = "approximate"

    def pattern(self, op, x):
        return op.Tanh(x)

    def rewrite(self, op, x):
        return op.Softsign(x)


def _first(graph, *ops):
    return next((node for node in graph.nodes if node.op in ops), None)


@graph_pass("crashes")
def crashes(graph):
    """Trips over a Tanh."""
    if _first(graph, "Tanh"):
        raise KeyError("tanh")


@graph_pass("again-and-again")
def again_and_again(graph):
    """Renames a Tanh each time that it runs."""
    node = _first(graph, "Tanh")
    if node is not None:
        node.name = f"{node.name}x"


@graph_pass("orders-by-hash")
def orders_by_hash(graph):
    """Names a Tanh after a set of letters, in the order that it has."""
    node = _first(graph, "Tanh")
    if node is not None:
        node.name = "".join({"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"})


@graph_pass("never-ends")
def never_ends(graph):
    """Waits for a Tanh."""
    while _first(graph, "Tanh"):
        time.sleep(0.01)


@graph_pass("kills")
def kills(graph):
    """Takes the whole process down, once: it leaves a file."""
    mark = Path(os.environ["FAULTY_PLUGIN_MARK"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


@hookimpl
def rewright_passes():
    return [WrongNumbers, TooRough, crashes, again_and_again, orders_by_hash, never_ends, kills]
