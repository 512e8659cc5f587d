"""What quantizing each node alone costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Final, Literal

from onnx import ModelProto
from pydantic import BaseModel, ConfigDict, Field

from rewright.model.carrier import Model
from rewright.model.errors import UsageError
from rewright.model.load import load
from rewright.passes.contract import Pass, Target
from rewright.passes.coverage import Covered
from rewright.registry.catalog import Catalog, default_catalog
from rewright.report.environment import environment
from rewright.report.model import EnvironmentReport
from rewright.run.input_choice import choose_input_sets
from rewright.run.options import Progress
from rewright.tuning.calibrated import calibrated_once
from rewright.tuning.request import QuantizationRequest
from rewright.tuning.trial import Quantizer
from rewright.verify.budget import QuantizationBudget
from rewright.verify.comparison import OutputEvidence
from rewright.verify.input_files import Source as Inputs
from rewright.verify.inputs import InputSet, Origin, make_input_sets
from rewright.verify.parity import ParityEvidence, ParityGate
from rewright.verify.process import SessionWorker

Source = str | PathLike[str] | ModelProto | Model

_CHUNKS_PER_JOB: Final = 4
"""More of them tell progress more often; each has to run the float model once."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class OutputLoss(_Record):
    """What one output loses, over the input set that is worst; see ``rewright.verify.comparison``."""

    name: str
    sqnr_db: float | None = None
    cosine: float | None = None
    top1: float | None = None
    max_abs: float | None = None


class NodeSensitivity(_Record):
    """What quantizing one node alone costs.

    Attributes:
        node, op: which one.
        status: "measured"; or "failed", where the model did not run with it.
        sqnr_db, top1: of the output that loses most.
        outputs: each of them.
        bytes_before, bytes_after: of its weight.
        reason: why it failed.
    """

    node: str
    op: str
    status: Literal["measured", "failed"] = "measured"
    sqnr_db: float | None = None
    top1: float | None = None
    outputs: list[OutputLoss] = Field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    reason: str = ""


class Sensitivity(_Record):
    """The nodes of a model by what quantizing each alone costs, the worst first. ``to_json()`` is the JSON form, schema 1.

    Attributes:
        model: its path; None for one in memory.
        chain: what was run: the level, then the quantizing pass on one node at a time.
        nodes: the ranking.
        missed: nodes that the pass does not quantize, with the reason.
        inputs, input_sets: what the outputs were compared on, and who it is from.
    """

    schema_version: Literal[1] = 1
    model: str | None
    chain: str
    nodes: list[NodeSensitivity]
    missed: dict[str, str]
    inputs: Origin
    input_sets: list[str]
    environment: EnvironmentReport
    seconds: float = 0.0

    def to_json(self) -> str:
        """The JSON form, indented."""
        return self.model_dump_json(indent=2)


def sensitivity(
    model: Source,
    *,
    request: QuantizationRequest | None = None,
    target: Target = "cpu",
    inputs: Inputs | None = None,
    seed: int = 0,
    jobs: int | None = None,
    catalog: Catalog | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Ranks the nodes of a model by what quantizing each alone costs its outputs.

    The level of the request is applied first. Nodes are measured in parallel by joblib: inside of
    ``joblib.parallel_config(backend="dask")``, or that of Ray, on a cluster, whose machines then have to see the folder of
    temporary files (``TMPDIR``).

    Args:
        model: a path, a ModelProto or a Model; never modified.
        request: the mode, the preset, the level, which nodes.
        target: where the result would run.
        inputs: what outputs are compared on; see ``rewright.optimize``. Made-up inputs rank roughly.
        seed: of made inputs.
        jobs: how many nodes are measured at once; None leaves that to joblib, 1 measures in this process.
        catalog: where the passes are.
        progress: called with (what, done, total).

    Raises:
        ModelError: the model cannot be read.
        UsageError: an option or an input is wrong, or the model cannot be run.
    """
    started = time.perf_counter()
    request = request if request is not None else QuantizationRequest()
    catalog = catalog if catalog is not None else default_catalog()
    step, original = request.step(catalog), load(model)
    if progress is not None:
        progress(f"applying {request.level}", 0, 1)
    given = choose_input_sets(catalog, original, inputs)
    sets = make_input_sets(original, seed) if given is None else given
    prepared = request.prepared(original, catalog, target)
    with calibrated_once(prepared, step, target) as ready:
        nodes, missed = ranking(prepared, ready, sets, target, jobs, progress)
    return Sensitivity(
        model=None if original.path is None else str(original.path),
        chain=request.text(catalog),
        nodes=nodes,
        missed={entry.node: entry.reason for entry in missed},
        inputs=sets[0].origin,
        input_sets=[each.name for each in sets],
        environment=environment(catalog.plugins),
        seconds=time.perf_counter() - started,
    )


def ranking(
    model: Model, step: Pass, sets: Sequence[InputSet], target: Target, jobs: int | None, progress: Progress | None
) -> tuple[list[NodeSensitivity], list[Covered]]:
    """The nodes that the pass quantizes, the one that costs most first; and those that it does not.

    Raises:
        UsageError: the model cannot be run on the inputs.
    """
    with SessionWorker() as worker:
        covered = Quantizer(model, step, target, worker).covered()
    quantized = [entry for entry in covered if entry.outcome == "quantized"]
    missed = [entry for entry in covered if entry.outcome != "quantized"]
    found: list[NodeSensitivity] = []
    if not quantized:
        return found, missed
    with _in_a_file(model) as path:
        for part in _in_parallel(path, step, target, sets, quantized, jobs):
            found.extend(part)
            if progress is not None:
                progress("measuring nodes", len(found), len(quantized))
    return sorted(found, key=_cost), missed


def _in_parallel(
    path: Path, step: Pass, target: Target, sets: Sequence[InputSet], entries: Sequence[Covered], jobs: int | None
) -> Iterator[list[NodeSensitivity]]:
    import joblib
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    count = max(1, backend.effective_n_jobs(jobs if jobs is not None else -1))
    if jobs is None and count == 1:
        jobs = 1
    size = max(1, -(-len(entries) // (count * _CHUNKS_PER_JOB)))
    threads = max(1, joblib.cpu_count() // count)
    arrays = [(each.name, dict(each.arrays), each.padding_masks) for each in sets]
    tasks = [
        joblib.delayed(measure_nodes)(str(path), step, target, arrays, entries[at : at + size], threads)
        for at in range(0, len(entries), size)
    ]
    returned: Iterable[list[NodeSensitivity]]
    how: dict[str, Any] = {"return_as": "generator_unordered"} if getattr(backend, "supports_return_generator", False) else {}
    returned = joblib.Parallel(n_jobs=jobs if jobs is not None else -1, **how)(tasks)
    yield from returned


def measure_nodes(
    path: str,
    step: Pass,
    target: Target,
    arrays: Sequence[tuple[str, dict[str, Any], tuple[str, ...]]],
    entries: Sequence[Covered],
    threads: int,
) -> list[NodeSensitivity]:
    """What each of some nodes costs; runs wherever joblib puts it, so that all it takes can be pickled.

    Raises:
        UsageError: the model cannot be run on the inputs.
    """
    model = load(path)
    sets = [InputSet(name, feeds, padding_masks=masks) for name, feeds, masks in arrays]
    with SessionWorker(threads=threads) as worker:
        gate = ParityGate(model, sets, worker, budget=_WHATEVER)
        quantizer = Quantizer(model, step, target, worker)
        return [_measured(entry, quantizer, gate) for entry in entries]


_WHATEVER: Final = QuantizationBudget(sqnr_db=-1e9, cosine=-1.0, agreement=0.0)


def _measured(entry: Covered, quantizer: Quantizer, gate: ParityGate) -> NodeSensitivity:
    found = NodeSensitivity(node=entry.node, op=entry.op, bytes_before=entry.bytes_before, bytes_after=entry.bytes_after)
    candidate = quantizer.only([entry.node])
    if candidate is None:
        found.status, found.reason = "failed", "the pass failed on it alone"
        return found
    evidence = gate.check(candidate, "quantizing", is_trial=True)
    if evidence.status == "not-run":
        raise UsageError(f"the model cannot be run: {evidence.reason}.", "Give inputs that it runs on by --inputs.")
    telling = [output for output in evidence.outputs if not output.vacuous]
    if evidence.status == "failed":
        found.status, found.reason = "failed", evidence.reason
    found.outputs = [_loss(output) for output in telling]
    found.sqnr_db, found.top1 = worst_of(evidence)
    return found


def worst_of(evidence: ParityEvidence) -> tuple[float | None, float | None]:
    """The least SQNR and the least agreement of the outputs that tell something."""
    telling = [output for output in evidence.outputs if not output.vacuous]
    sqnr = [output.sqnr_db for output in telling if output.sqnr_db is not None]
    top1 = [output.top1 for output in telling if output.top1 is not None]
    return min(sqnr, default=None), min(top1, default=None)


def _loss(output: OutputEvidence) -> OutputLoss:
    return OutputLoss(name=output.name, sqnr_db=output.sqnr_db, cosine=output.cosine, top1=output.top1, max_abs=output.max_abs)


def _cost(entry: NodeSensitivity) -> tuple[bool, float, float, str]:
    """What fails comes first, then what leaves the least signal."""
    sqnr = entry.sqnr_db if entry.sqnr_db is not None else float("inf")
    return entry.status != "failed", sqnr, entry.top1 if entry.top1 is not None else 1.0, entry.node


@contextmanager
def _in_a_file(model: Model) -> Iterator[Path]:
    """Where other processes find the model."""
    with tempfile.TemporaryDirectory(prefix="rewright-sensitivity-") as folder:
        path = Path(folder) / "model.onnx"
        model.save(path)
        yield path
