"""Sites of passes that turn one model into another as a whole: what the node lists differ by."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto, NodeProto

from rewright.model.carrier import Model, node_lists
from rewright.passes.contract import Site
from rewright.passes.session import PassSession

Entry = tuple[str, str, tuple[str, ...], tuple[str, ...]]


def record_difference(session: PassSession, after: Model) -> Site | None:
    """Records one site that holds every node that is gone and every node that is new; None if the node lists are equal."""
    before_nodes, after_nodes = _entries(session.model.proto), _entries(after.proto)
    removed = [entry for entry in before_nodes if entry not in after_nodes]
    added = [entry for entry in after_nodes if entry not in before_nodes]
    if not removed and not added:
        return None
    site = Site(
        id=f"{session.current.name}#{len(session.sites)}",
        graph=after.proto.graph.name,
        removed=tuple(entry[1] for entry in removed),
        added=tuple(entry[1] for entry in added),
        ops_removed=tuple(entry[0] for entry in removed),
        ops_added=tuple(entry[0] for entry in added),
        values=tuple(name for entry in (*removed, *added) for name in entry[3] if name),
    )
    session.sites.append(site)
    return site


def _entries(proto: ModelProto) -> dict[Entry, None]:
    return dict.fromkeys(_entry(node) for _, nodes in node_lists(proto) for node in nodes)


def _entry(node: NodeProto) -> Entry:
    op = f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return op, node.name or next(filter(None, node.output), node.op_type), tuple(node.input), tuple(node.output)


def fresh_nodes(before: ModelProto, after: ModelProto) -> Iterator[NodeProto]:
    """The nodes of ``after`` that ``before`` does not have."""
    known = _entries(before)
    for _, nodes in node_lists(after):
        for node in nodes:
            if _entry(node) not in known:
                yield node
