"""What the site gate measured."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SiteStatus = Literal["passed", "failed", "not-run", "unused"]


class RegionEvidence(BaseModel):
    """One changed region, before against after, over the same boundary values.

    Attributes:
        sites: ids of the pass's sites that it covers; empty where the change belongs to none.
        at: a node of it.
        status: "unused" where nothing outside reads what it makes, so that there is nothing to compare; "not-run" where the
            part of the model before the pass cannot be run by itself, or the values around it are not known.
        reason: why it failed or was not run.
        sets: how many sets of boundary values it was run on, ``captured`` of them as they occurred.
        free: how many boundary inputs took made-up numbers as well.
        reference: what both were compared with: the old part in float64 where it can be had.
        runs_as: whether the new part ran by ONNX Runtime's kernels or through the bodies of op contracts.
        shared_with: where it has the structure of another site and other weights, that site: it ran on fewer sets.
        output, worst_set: where the largest difference in proportion to what is allowed was found.
        max_abs: that difference; ``allowed`` what was allowed there; ``noise`` the old part's own error in that tensor.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    sites: list[str]
    at: str
    status: SiteStatus
    reason: str = ""
    sets: int = 0
    captured: int = 0
    free: int = 0
    reference: Literal["float64", "as run"] = "as run"
    runs_as: Literal["kernels", "contract bodies"] = "kernels"
    shared_with: str = ""
    output: str = ""
    worst_set: str = ""
    max_abs: float | None = None
    allowed: float | None = None
    noise: float | None = None


class SiteParityEvidence(BaseModel):
    """What the site gate measured for one pass: ``status`` is "failed" if a region has failed."""

    model_config = ConfigDict(extra="forbid")

    gate: Literal["sites"] = "sites"
    status: Literal["passed", "failed", "not-run"]
    regions: list[RegionEvidence] = Field(default_factory=list)
    reason: str = ""
    seconds: float = 0.0
