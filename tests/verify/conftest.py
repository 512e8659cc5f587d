"""What the tests of the gates share: models from text, and one session worker."""

from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest

from rewright.model.carrier import Model
from rewright.model.load import load
from rewright.verify.process import SessionWorker

HEADER = '<ir_version: 10, opset_import: ["": 17, "com.microsoft": 1]>'


@pytest.fixture(scope="session")
def parse() -> Callable[[str], Model]:
    """A model from ONNX text; the header is added where the text has none."""

    def parsed(text: str) -> Model:
        return load(onnx.parser.parse_model(text if text.lstrip().startswith("<") else HEADER + text))

    return parsed


@pytest.fixture(scope="session")
def worker() -> Iterator[SessionWorker]:
    with SessionWorker() as running:
        yield running


@pytest.fixture(scope="session")
def zoo() -> Callable[[str], Model]:
    """One of the small exported models of tests/zoo."""
    folder = Path(__file__).parent.parent / "zoo"
    return lambda name: load(folder / f"{name}.onnx")
