"""Which inputs a run compares on: the caller's, else a plugin's, else those that are made from the model."""

from __future__ import annotations

from rewright.model.carrier import Model
from rewright.model.errors import PluginError, UsageError
from rewright.registry.catalog import Catalog
from rewright.verify.input_files import Source, load_input_sets
from rewright.verify.inputs import InputSet


def choose_input_sets(catalog: Catalog, model: Model, inputs: Source | None) -> list[InputSet] | None:
    """What the caller gives, else what a plugin of the catalog offers for the model; None if inputs are to be made.

    Raises:
        UsageError: what the caller gives does not fit the model.
        PluginError: what a plugin offers does not, or its hook fails.
    """
    if inputs is not None:
        return load_input_sets(model, inputs)
    offered = catalog.input_sets(model)
    if offered is None:
        return None
    source, plugin = offered
    try:
        return load_input_sets(model, source, origin="plugin", by=plugin.label)
    except UsageError as error:
        raise PluginError(f"{plugin.label}: rewright_input_sets: {error.message}", error.hint) from error
