"""Two models side by side, in a test."""

from __future__ import annotations

from rewright.api import Inputs
from rewright.testing import wording
from rewright.testing.sources import Source, model_of
from rewright.verify.models import ModelComparison, verify


def assert_parity(
    reference: Source,
    candidate: Source,
    *,
    inputs: Inputs | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
) -> ModelComparison:
    """Checks that two models have the same interface and compute the same numbers.

    Args:
        reference, candidate: ONNX text, paths, ModelProtos, Models or GraphBuilders.
        inputs: what they run on: an .npz file, a folder, arrays by input name, or a sequence of such; made from the
            reference by default.
        rtol, atol: tolerance of floating-point outputs; by default that of a reassociating rewrite in float32.
        seed: of the made inputs.

    Raises:
        AssertionError: the interfaces differ, an output differs, or the comparison proves nothing.
        ModelError, UsageError: a model cannot be read, or the inputs do not fit.
    """
    __tracebackhide__ = True
    found = verify(model_of(reference), model_of(candidate), inputs=inputs, rtol=rtol, atol=atol, seed=seed)
    if not found.equal:
        problems = list(found.interface.problems)
        if found.parity.status != "passed":
            what = {"failed": "the outputs differ", "vacuous": "the comparison proves nothing"}.get(
                found.parity.status, "nothing was compared"
            )
            problems.append(f"{what}: {found.parity.reason}" + wording.outputs(found.parity.outputs))
        numbered = [f"{number}. {problem}" for number, problem in enumerate(problems, 1)]
        raise AssertionError("\n".join(["the two models are not equal:", *numbered]))
    return found
