"""A quantizing pass on one model, on other nodes each time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewright.model.carrier import Model
from rewright.model.errors import RewrightError, SelectionError
from rewright.passes.contract import Pass, Target
from rewright.passes.coverage import Covered
from rewright.passes.session import PassSession
from rewright.registry.options import with_options
from rewright.run.applying import apply_pass
from rewright.verify.process import SessionWorker


@dataclass
class Quantizer:
    """Applies a pass to a model without any gate; the model itself stays as it is.

    Attributes:
        model: what is quantized.
        step: the pass, with its options.
        target: where the result will run.
        worker: where a backend works that may crash.
    """

    model: Model
    step: Pass
    target: Target
    worker: SessionWorker

    def covered(self) -> list[Covered]:
        """What the pass says of each node that it is for.

        Raises:
            RewrightError: the pass fails.
        """
        found: list[Covered] = []
        for part in self.step.parts():
            candidate, coverage, reason = self._applied(part)
            if candidate is None:
                raise RewrightError(f"the pass '{part.name}' fails: {reason}.", "`rewright optimize -p` runs it with a report.")
            found.extend(coverage)
        done = {entry.node: entry for entry in found if entry.outcome == "quantized"}
        return [*done.values(), *(entry for entry in found if entry.node not in done)]

    def only(self, nodes: Sequence[str]) -> Model | None:
        """The model with these nodes quantized and no others; None where the pass fails or changes nothing."""
        return self._result({"nodes": list(nodes)})

    def without(self, nodes: Iterable[str]) -> Model | None:
        """The model with everything quantized but these nodes; None where the pass fails or changes nothing."""
        kept = [*getattr(self.step, "exclude", ()), *nodes]
        return self._result({"exclude": kept})

    def _result(self, options: dict[str, list[str]]) -> Model | None:
        current: Model | None = None
        for part in with_options(self.step, options).parts():
            model = current if current is not None else self.model
            try:
                candidate, _, _ = Quantizer(model, part, self.target, self.worker)._applied(part)
            except SelectionError:
                if current is None:
                    raise
                continue  # what was selected became something else by the part before
            if candidate is not None and candidate is not model and candidate.fingerprint() != model.fingerprint():
                current = candidate
        return current

    def _applied(self, part: Pass) -> tuple[Model | None, list[Covered], str]:
        session = PassSession(part, self.model, self.target, isolation=self.worker)
        candidate, reason = apply_pass(part, session)
        return candidate, session.coverage, reason
