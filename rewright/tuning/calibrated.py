"""Finding the ranges of activations once for many trials of one pass."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from rewright.model.carrier import Model
from rewright.passes.contract import Pass, Target
from rewright.passes.session import PassSession
from rewright.quant.activations import calibration_sets
from rewright.quant.calibration.data import Data, files_of
from rewright.quant.calibration.measuring import ranges_of
from rewright.quant.quantize_static import QuantizeStatic
from rewright.registry.options import with_options
from rewright.verify.process import SessionWorker


@contextmanager
def calibration_written(model: Model, data: Data | None) -> Iterator[tuple[str | None, str]]:
    """Where calibration data is: its path, or a folder that it is written to, which is there as long as the context is.

    Yields:
        the path, None where there is no data; and what of it was left out, in a sentence, or nothing.

    Raises:
        UsageError: it does not fit the model.
    """
    if data is None or isinstance(data, (str, PathLike)):
        yield None if data is None else str(data), ""
        return
    with tempfile.TemporaryDirectory(prefix="rewright-calibration-") as folder:
        files = files_of(model, data, Path(folder))
        yield folder, files.message


@contextmanager
def calibrated_once(model: Model, step: Pass, target: Target) -> Iterator[Pass]:
    """The pass, with a file of ranges in the place of calibration data; any other pass as it is.

    The file is there as long as the context is.

    Raises:
        UsageError: the calibration data does not fit the model.
    """
    if not isinstance(step, QuantizeStatic) or step.calibration is None:
        yield step
        return
    with tempfile.TemporaryDirectory(prefix="rewright-ranges-") as folder, SessionWorker() as worker:
        session = PassSession(step, model, target, isolation=worker)
        session.ensure_facts()
        names = step.values_to_calibrate(session, step.chosen(session))
        if not names:
            yield step
            return
        path = Path(folder) / "ranges.json"
        ranges_of(session, model, calibration_sets(step.calibration), names, step.calibration_method).save(path)
        worker.close()
        yield with_options(step, {"ranges": str(path), "calibration": None})
