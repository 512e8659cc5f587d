"""Reports with something to show in every place."""

from __future__ import annotations

import pytest

from rewright.report.model import (
    EnvironmentReport,
    ModelReport,
    PassReport,
    PluginReport,
    RejectionReport,
    Report,
    Seconds,
    SiteReport,
)
from rewright.verify.comparison import OutputEvidence
from rewright.verify.mutation import MutationEvidence
from rewright.verify.parity import ParityEvidence


def output(**facts: object) -> OutputEvidence:
    usual = {
        "name": "logits",
        "dtype": "float32",
        "shape": [2, 3],
        "max_abs": 2.1e-6,
        "max_rel": 1e-6,
        "rtol": 1e-5,
        "atol": 1e-5,
        "needed_rtol": 3.2e-6,
        "equal": True,
        "input_set": "set-1",
    }
    return OutputEvidence(**{**usual, **facts})


def parity(status: str, *outputs: OutputEvidence, **facts: object) -> ParityEvidence:
    sets = ["set-0", "set-1", "set-2", "set-3"]
    return ParityEvidence(status=status, exactness="reassociating", input_sets=sets, outputs=list(outputs), **facts)


def site(number: int, status: str = "kept") -> SiteReport:
    return SiteReport(
        id=f"gelu#{number}",
        status=status,
        graph="main",
        removed=[f"/encoder/layer.{number}/Mul_1", f"/encoder/layer.{number}/Erf"],
        added=[f"/encoder/layer.{number}/Gelu"],
        ops_removed=["Mul", "Erf"],
        ops_added=["com.microsoft::Gelu"],
    )


@pytest.fixture
def report() -> Report:
    """A run of five passes: kept, unchanged, wrong, crashed and kept, with evil names in it."""
    differing = output(equal=False, max_abs=0.19, needed_rtol=6.7, message="6 of 6 elements differ too much")
    passes = [
        PassReport(
            name="constant-folding", backend="standalone", status="unchanged", exactness="exact",
            nodes_before=12480, nodes_after=12480,
        ),
        PassReport(
            name="common-subexpression", backend="standalone", status="applied", exactness="exact",
            sites=[site(0)], nodes_before=12480, nodes_after=11466, seconds=Seconds(apply=1.234, verify=12.5),
            parity=parity("passed", output(rtol=0, atol=0, max_abs=0, needed_rtol=0)),
        ),
        PassReport(
            name="acme-wrong", backend="ort", status="rolled-back", exactness="exact", sites=[site(1, "rolled-back")],
            nodes_before=11466, nodes_after=11466, parity=parity("failed", output(), differing),
            reason="parity: output 'logits' on input set 'set-1': 6 of 6 elements differ too much",
            reproducer="/models/out.onnx.reproducers/02-acme-wrong",
        ),
        PassReport(
            name="acme-crash", backend="standalone", status="failed", exactness="exact",
            nodes_before=11466, nodes_after=11466, reason="ZeroDivisionError: division by zero (in crash.py, line 7)",
        ),
        PassReport(
            name="gelu", backend="standalone", status="applied", exactness="reassociating", sites=[site(n) for n in range(12)],
            nodes_before=11466, nodes_after=11382, seconds=Seconds(apply=0.5, verify=0.25), parity=parity("passed", output()),
            rejections=[
                *(RejectionReport(node=f"/n{n}/Erf", reason=f"the sum is used elsewhere, by '/n{n}/Add'") for n in range(3)),
                RejectionReport(node="<b>evil</b>\x1b[31m", reason="the dtype is unknown <script>alert(1)</script>"),
            ],
            notes=["one region was left to ONNX Runtime"],
        ),
    ]  # fmt: skip
    return Report(
        verdict="passed-with-rollbacks",
        model=ModelReport(
            path="/models/bert.onnx",
            nodes_before=12480,
            nodes_after=11382,
            ops_before={"ai.onnx::Erf": 12, "ai.onnx::MatMul": 96},
            ops_after={"com.microsoft::Gelu": 12, "ai.onnx::MatMul": 96},
            bytes_before=438_000_000,
            bytes_after=437_900_000,
        ),
        chain="constant-folding, common-subexpression, acme-wrong{backend=ort}, acme-crash, gelu",
        environment=EnvironmentReport(
            versions={"rewright": "0.1.0"},
            providers=["CPUExecutionProvider"],
            cpu="a processor",
            plugins=[PluginReport(name="acme", distribution="acme-rewright", version="1.2.0")],
        ),
        passes=passes,
        parity=parity(
            "passed", output(), output(name="mask", vacuous="constant"), dropped=["set-4 (N=9): Gather index out of range"]
        ),
        mutation=MutationEvidence(status="passed", tried=["a", "b", "c"], noticed=["a", "b"]),
        warnings=["gelu asks to run after layer-norm, but runs the other way round in this chain"],
        seconds=15.5,
        rss_peak=1_250_000_000,
    )
