"""Which weights give the outputs of a model."""

from tf_rigl._base.keras_internals import all_layers, graph_of, history, nodes_of


def mark(model, items) -> None:
    """Sets `gives_output` of each weight: no other masked weight comes between it and an output.

    Of a layer with several weights it is the last one. A model that is no graph tells nothing:
    there it is False for all.

    Args:
        model: `keras.Model`.
        items: list of `tf_rigl.weights.sparse_weight.SparseWeight`, in model order.
    """
    for item in items:
        item.gives_output = False
    if (graph := graph_of(model)) is not None:
        for item in _last(graph, {id(item.layer): item for item in items}):
            item.gives_output = True


def _last(graph, holders) -> list:
    """Returns the items that reach the outputs of a graph, walking back from these."""
    found, seen, left = [], set(), list(graph.outputs)
    while left:
        made = history(left.pop())
        operation = made.operation
        if (id(operation), made.node_index) in seen:
            continue
        seen.add((id(operation), made.node_index))
        if (inner := graph_of(operation)) is not None:
            ours = _last(inner, holders)
        else:
            held = [id(layer) for layer in all_layers(operation) if id(layer) in holders]
            ours = [holders[held[-1]]] if held else []
        found += ours
        if not ours:  # It computes without masked weights.
            left += nodes_of(operation)[made.node_index].input_tensors
    return found
