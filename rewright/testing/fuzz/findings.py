"""Folders that keep findings: the smallest graph that shows it, the chain, the reason, and the command that runs it again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from onnx import ModelProto

from rewright.api import Chain
from rewright.model.carrier import Model
from rewright.model.errors import RewrightError, UsageError
from rewright.model.load import load
from rewright.passes.contract import Target
from rewright.registry.grammar import format_pass
from rewright.registry.options import chosen_options
from rewright.run import VerifyMode
from rewright.testing.fuzz.checks import Examiner, Finding, Kind, OutOfTime, time_limit
from rewright.testing.fuzz.whole import whole
from rewright.verify.inputs import InputSet
from rewright.verify.process import SessionWorker

_MODEL, _RECORD = "model.onnx", "finding.json"


@dataclass(frozen=True)
class Kept:
    """A finding with the model that shows it, and what is needed to see it again."""

    model: ModelProto
    finding: Finding
    verify: VerifyMode = "model"
    seed: int = 0
    target: Target = "cpu"


def minimize(examiner: Examiner, model: ModelProto, finding: Finding, seed: int, seconds: float) -> tuple[ModelProto, Finding]:
    """A smaller model and a shorter chain that show a finding of the same kind by the same pass; at worst those given."""
    try:
        with time_limit(2 * seconds + examiner.limit):
            model, finding = _single_pass(examiner, model, finding, seed)
            return _smaller(examiner, model, finding, seed, seconds)
    except (OutOfTime, RewrightError, ValueError, TypeError, RuntimeError, LookupError):
        return model, finding  # what is found by chance may break what reduces it as well


def _single_pass(examiner: Examiner, model: ModelProto, finding: Finding, seed: int) -> tuple[ModelProto, Finding]:
    """The pass alone, on what the passes before it had made of the model."""
    passes = Chain(finding.chain, catalog=examiner.catalog).passes
    for index, step in enumerate(passes):
        if step.name != finding.culprit:
            continue
        before = whole(Chain(passes[:index], catalog=examiner.catalog).run(model, verify="off", target=examiner.target).model)
        text = format_pass(step.name, chosen_options(step))
        found = examiner.judge(before, text, is_idempotent=True, seed=seed)
        if found is not None and (found.kind, found.culprit) == (finding.kind, finding.culprit):
            return before, found
    return model, finding


def _smaller(examiner: Examiner, model: ModelProto, finding: Finding, seed: int, seconds: float) -> tuple[ModelProto, Finding]:
    from rewright.verify.reduction import Budget, reduce_failure

    smallest, last = model, finding

    def still_fails(part: Model, input_sets: Sequence[InputSet]) -> bool:
        nonlocal smallest, last
        proto = whole(part)
        found = examiner.judge(proto, finding.chain, is_idempotent=finding.kind == "not idempotent", seed=seed)
        if found is None or (found.kind, found.culprit) != (finding.kind, finding.culprit):
            return False
        if len(proto.graph.node) <= len(smallest.graph.node):
            smallest, last = proto, found
        return True

    with SessionWorker(timeout=examiner.limit) as worker:
        sites = _sites(examiner, model, finding.chain)
        reduce_failure(load(model), sites, [], worker, still_fails, budget=Budget(trials=200, seconds=seconds))
    return smallest, last


def _sites(examiner: Examiner, model: ModelProto, chain: str) -> list[list[str]]:
    """Where the chain fires, if it is one pass that does not crash."""
    passes = Chain(chain, catalog=examiner.catalog).run(model, verify="off", target=examiner.target).report.passes
    return [site.removed for site in passes[0].sites] if len(passes) == 1 else []


def keep(folder: Path, kept: Kept) -> Path:
    """Writes a finding into a folder of its own below ``folder``, and gives that."""
    finding = kept.finding
    words = re.sub(r"[^a-z0-9]+", "-", f"{finding.culprit}-{finding.kind}".lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        place = folder / f"{number:03d}-{words}"
        try:
            place.mkdir()
            break
        except FileExistsError:
            number += 1
    onnx.save(kept.model, place / _MODEL)
    (place / "chain.txt").write_text(finding.chain + "\n")
    (place / "reason.txt").write_text(finding.reason + "\n")
    (place / "COMMAND").write_text(f"python -m rewright.testing.fuzz --replay {place}\n")
    record = {"finding": 1, **asdict(finding), "verify": kept.verify, "seed": kept.seed, "target": kept.target}
    (place / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return place


def read(folder: Path) -> Kept:
    """Reads a finding's folder.

    Raises:
        UsageError: it is none.
    """
    try:
        record = json.loads((folder / _RECORD).read_text())
        kind: Kind = record["kind"]
        finding = Finding(kind, record["chain"], record["culprit"], record["reason"])
        return Kept(onnx.load(folder / _MODEL), finding, record["verify"], int(record["seed"]), record.get("target", "cpu"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} holds no finding: {error}.", "Give a folder that a run of the fuzzer has kept.") from error


def replay(examiner: Examiner, kept: Kept) -> Finding | None:
    """Runs a finding again; None if it is mended."""
    examiner.verify, examiner.target = kept.verify, kept.target
    is_idempotent = kept.finding.kind == "not idempotent"
    return examiner.judge(kept.model, kept.finding.chain, is_idempotent=is_idempotent, seed=kept.seed)
