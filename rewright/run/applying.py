"""One application of one pass, whatever it raises."""

from __future__ import annotations

import traceback
from pathlib import Path

from rewright.model.carrier import Model
from rewright.model.errors import RewrightError, ScratchError, SelectionError
from rewright.passes.contract import Pass
from rewright.passes.session import PassSession


def apply_pass(step: Pass, session: PassSession) -> tuple[Model | None, str]:
    """The model after the pass; or None, and what the pass died of, which the caller writes down: a crash ends no run.

    Raises:
        SelectionError: an option of the pass selects nodes, and the model has none of them.
        ScratchError: the folder for temporary files is full, which no other pass would mend.
    """
    try:
        if step.is_deferred:
            from rewright.passes.ort.carrying import carry_out

            carry_out(step, session)
        else:
            step.apply(session)
        if session.result is not None:
            return session.result, ""
        return (session.opened.to_model() if session.opened is not None else session.model), ""
    except (ScratchError, SelectionError):
        raise
    except RewrightError as error:
        return None, str(error)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return None, f"{type(error).__name__}: {error} (in {Path(place.filename).name}, line {place.lineno})"
