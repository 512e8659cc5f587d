"""Selection for the passes of this room; it is that of all passes that choose among nodes."""

from rewright.passes.selection import Candidate, QuantizingPass

__all__ = ["Candidate", "QuantizingPass"]
