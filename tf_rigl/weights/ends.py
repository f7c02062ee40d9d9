"""Which weights give the outputs of a model."""

import dataclasses

import keras

from tf_rigl._base.keras_internals import all_layers, graph_of, history, nodes_of


def marked(model, items) -> list:
    """Returns the weights with `gives_output` set.

    It is True if no other masked weight comes between what the layer computes and an output; of a
    layer with several weights, for the last one. A model that is no graph tells nothing: there it
    is False for all.

    Args:
        model: `keras.Model`.
        items: list of `tf_rigl.weights.sparse_weight.SparseWeight`, in model order.
    """
    graph = graph_of(model)
    if graph is None:
        return items
    last = {id(item) for item in _last(graph, {id(item.layer): item for item in items})}
    return [dataclasses.replace(item, gives_output=id(item) in last) for item in items]


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
            # Operations of `keras.ops` hold no layers.
            inside = all_layers(operation) if isinstance(operation, keras.layers.Layer) else []
            held = [id(layer) for layer in inside if id(layer) in holders]
            ours = [holders[held[-1]]] if held else []
        found += ours
        if not ours:  # It computes without masked weights.
            left += nodes_of(operation)[made.node_index].input_tensors
    return found
