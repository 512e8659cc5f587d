"""The ``inline-functions`` pass."""

from __future__ import annotations

from onnx import ModelProto, NodeProto, inliner

from rewright.model.carrier import Model, all_nodes
from rewright.model.elements import normal_domain
from rewright.passes.contract import Rejection
from rewright.passes.deferral import Deferral
from rewright.passes.difference import fresh_nodes, record_difference
from rewright.passes.graph_pass import ModelPass
from rewright.passes.session import PassSession


def _free_name(node: NodeProto, taken: set[str]) -> str:
    """A name after the node's first output, which is unique already."""
    base = name = f"{next(filter(None, node.output), 'inlined')}/{node.op_type}"
    number = 0
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name)
    return name


class InlineFunctions(ModelPass):
    """Replaces calls of model-local functions by the nodes of their bodies, so that other passes see through them.

    1. The work is onnx's own inliner's, on the skeleton: names inside a body get a prefix where they would clash, attribute
       references get the caller's values or the function's defaults.
    2. A function whose opset imports contradict the model's stays, with its calls, and is reported.
    3. Functions that nothing calls go as well.
    """

    name = "inline-functions"
    ort = Deferral(declines="ONNX Runtime inlines functions whenever it loads a model: ort-session{level=none} is just that")

    def transform(self, session: PassSession) -> Model:
        source = session.model.proto
        if not source.functions:
            return session.model
        proto: ModelProto = inliner.inline_local_functions(source, convert_version=False)
        taken = {node.name for node in all_nodes(proto)}
        for node in fresh_nodes(source, proto):
            node.metadata_props.add(key="rewright.pass", value=self.name)
            if not node.name:
                node.name = _free_name(node, taken)
        left = {(function.domain, function.name): function for function in proto.functions}
        for node in all_nodes(proto):
            function = left.get((node.domain, node.op_type))
            if function is not None:
                wanted = {normal_domain(entry.domain): entry.version for entry in function.opset_import}
                given = {normal_domain(entry.domain): entry.version for entry in proto.opset_import}
                clash = [f"{domain or 'ai.onnx'} {wanted[domain]}" for domain in wanted if given.get(domain) != wanted[domain]]
                reason = f"the function {function.name} follows {', '.join(clash) or 'other opsets'}, which the model does not"
                session.rejections.append(Rejection(node.name or node.op_type, reason))
        result = session.model.with_proto(proto)
        if record_difference(session, result) is None:
            return session.model
        return result
