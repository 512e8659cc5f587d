"""The hooks through which passes and levels reach the catalog; the built-in ones use them too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from rewright.model.carrier import Model
    from rewright.passes.contract import Pass

PROJECT = "rewright"
"""The pluggy project name, which is the entry point group too."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as the implementation of the hook of the same name."""


@hookspec
def rewright_passes() -> Iterable[type[Pass]]:  # type: ignore[empty-body]
    """Return the pass classes that this plugin offers. A name that another plugin already has is an error."""


@hookspec
def rewright_levels() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Return named chains, each as chain text: `{"acme-mobile": "O2, acme-relu-clip"}`. They expand as O0..O3 do."""


@hookspec(firstresult=True)
def rewright_input_sets(model: Model) -> str | PathLike[str] | Mapping[str, Any] | Iterable[Mapping[str, Any]] | None:
    """Return what a model is to be compared on, or None for a model that this plugin knows nothing about.

    What is returned has one of the forms that a user may give: arrays by input name, any iterable of such, or the path of an
    ``.npz`` file or a folder. It is asked for only where the user gives no inputs, and the first plugin that answers is
    taken. The inputs of ``model.proto.graph`` tell what is needed.
    """
