"""Calibration as a step of its own: ranges that ``quantize-static`` can be given, found once and used often."""

from __future__ import annotations

import warnings
from os import PathLike

from onnx import ModelProto

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.passes.session import PassSession
from rewright.quant.activations import scratch
from rewright.quant.calibration.data import Data, files_of
from rewright.quant.calibration.measuring import Progress, ranges_of
from rewright.quant.calibration.ranges import Ranges
from rewright.quant.calibration.thresholds import METHODS, Method
from rewright.quant.quantize_static import QuantizeStatic
from rewright.verify.process import SessionWorker


def calibrate(
    model: str | PathLike[str] | ModelProto | Model,
    data: Data,
    method: Method = "minmax",
    *,
    step: QuantizeStatic | None = None,
    progress: Progress | None = None,
    worker: SessionWorker | None = None,
) -> Ranges:
    """The ranges of the values that ``quantize-static`` would quantize.

    ``calibrate("model.onnx", samples, "percentile").save("ranges.json")``, then ``quantize-static{ranges="ranges.json"}``.
    The model has to be the one that the pass will see: fuse first, then calibrate, then quantize.

    Args:
        model: a path, a ModelProto or a Model.
        data: an .npz file with one input set, a folder of such files, a mapping from input names to arrays, or any iterable of
            mappings, of any length and of sets of any shapes, such as a Hugging Face dataset or a torch DataLoader: they are
            written to a temporary folder, one by one. Columns that no input takes are left out, with a warning.
        method: "minmax", "entropy", "percentile" or "distribution".
        step: with other options of calibration, and another choice of nodes; its ``method`` gives way to ``method``.
        progress: called with how much is done, and of how much.
        worker: what runs the model, for callers who have one.

    Raises:
        UsageError: there is no data, it does not fit the model, or the method is unknown.
    """
    if method not in METHODS:
        raise UsageError(f"there is no calibration method '{method}'.", f"The methods are {', '.join(METHODS)}.")
    loaded = load(model)
    chosen = (step or QuantizeStatic()).model_copy(update={"method": method})
    own = worker or SessionWorker()
    try:
        session = PassSession(chosen, loaded, isolation=own)
        session.ensure_facts()
        names = chosen.values_to_calibrate(session, chosen.chosen(session))
        with scratch(loaded) as folder:
            files = files_of(loaded, data, folder)
            if files.message:
                warnings.warn(files.message, stacklevel=2)
            return ranges_of(session, session.view.to_model(), files.paths, names, chosen.calibration_method, progress)
    finally:
        if worker is None:
            own.close()
