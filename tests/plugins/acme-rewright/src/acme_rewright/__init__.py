"""The plugin module: its hooks name the passes and a level. The pass that is wrong has an entry point of its own."""

from rewright import hookimpl


@hookimpl
def rewright_passes():
    from acme_rewright.double_negation import DoubleNegation
    from acme_rewright.relu_once import relu_once

    return [DoubleNegation, relu_once]


@hookimpl
def rewright_levels():
    return {"acme": "O1, acme-double-negation, acme-relu-once"}
