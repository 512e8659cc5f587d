"""A pass of your own, in a chain with built-in ones. Usage: python own_pass.py MODEL.onnx OUT.onnx"""

import sys

import rewright


class ReciprocalToDiv(rewright.PatternPass):
    """x * Reciprocal(y) -> x / y."""

    name = "reciprocal-to-div"
    exactness = "reassociating"

    def pattern(self, op, x, y):
        return x * op.Reciprocal(y)

    def check(self, match, x, y):
        match.require(x.dtype is not None and x.dtype.kind == "f", "the dtype is unknown or not a float", x)

    def rewrite(self, op, x, y):
        return op.Div(x, y)


def main(source: str, target: str) -> None:
    """Optimizes ``source`` into ``target`` and prints the report."""
    chain = rewright.Chain(["O2", ReciprocalToDiv()])
    result = chain.run(source)
    result.report.show()
    result.save(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
