from rewright import graph_pass


@graph_pass("acme-relu-once")
def relu_once(graph):
    """Relu(Relu(x)) -> Relu(x), where nothing else uses the inner one."""
    for outer in [node for node in graph.nodes if node.op == "Relu"]:
        value = outer.inputs[0]
        inner = value.inputs[0] if value.inputs else None
        if inner is not None and inner.op == "Relu" and len(value.outputs) == 1 and value not in graph.outputs:
            outer.inputs[0] = inner.inputs[0]
            graph.nodes.remove(inner)
