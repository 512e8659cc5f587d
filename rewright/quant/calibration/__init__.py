"""Calibration: the range of each value that is quantized, found by running the model on data, in bounded memory."""

from rewright.quant.calibration.ranges import Ranges

__all__ = ["Ranges"]
