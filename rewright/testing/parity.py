"""Two models side by side, in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike

from rewright.api import Inputs
from rewright.testing import wording
from rewright.testing.sources import Source, model_of
from rewright.verify.mapping import NameMap
from rewright.verify.models import ModelComparison, verify

_SAID = {"failed": "the outputs differ", "vacuous": "the comparison proves nothing", "not-run": "nothing was compared"}


def assert_parity(
    reference: Source,
    candidate: Source,
    *,
    inputs: Inputs | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    mapping: NameMap | None = None,
    by_position: bool = False,
) -> ModelComparison:
    """Checks that two models have the same interface and compute the same numbers.

    Args:
        reference, candidate: ONNX text, paths, ModelProtos, Models or GraphBuilders.
        inputs: what they run on: an .npz file, a folder, arrays by input name, or an iterable of such; made from the
            reference by default.
        rtol, atol: tolerance of floating-point outputs; by default that of a reassociating rewrite in float32.
        seed: of the made inputs.
        mapping: the candidate's names of inputs and outputs by the reference's, where they differ.
        by_position: inputs and outputs are paired by their order instead.

    Returns:
        What was measured.

    Raises:
        AssertionError: the interfaces differ, an output differs, or the comparison proves nothing; with the first value
            inside the models that differs, if there is one.
        ModelError, UsageError: a model cannot be read, the inputs do not fit, or the names do not.
    """
    __tracebackhide__ = True
    given = inputs if inputs is None or isinstance(inputs, (str, PathLike, Mapping, Sequence)) else list(inputs)
    found = verify(
        model_of(reference),
        model_of(candidate),
        inputs=given,
        rtol=rtol,
        atol=atol,
        seed=seed,
        mapping=mapping,
        by_position=by_position,
    )
    if not found.equal:
        problems = list(found.interface.problems)
        if found.parity.status != "passed":
            said = f"{_SAID[found.parity.status]}: {found.parity.reason}"
            problems.append(said + wording.outputs(found.parity.outputs) + wording.beginning(found.divergence))
        numbered = [f"{number}. {problem}" for number, problem in enumerate(problems, 1)]
        raise AssertionError("\n".join(["the two models are not equal:", *numbered]))
    return found
