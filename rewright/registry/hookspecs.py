"""The hooks through which passes and levels reach the catalog; the built-in ones use them too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
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
