"""Attention as a graph of ordinary layers, whose projections can become compact."""

import keras

from tf_rigl._base.keras_internals import carries_mask, is_gated, nodes_of, projection
from tf_rigl.block_sparse.attention import MultiHeadAttention, tensors_of_call
from tf_rigl.compaction import parts

NAMES = ("query", "key", "value", "attention_output")
_KINDS = (keras.layers.MultiHeadAttention, MultiHeadAttention)


def is_attention(layer) -> bool:
    """Returns whether a layer is multi-head attention, of Keras or block-sparse."""
    return type(layer) in _KINDS


def obstacle(layer):
    """Returns the reason why an attention layer of a graph cannot be unfolded, or None."""
    config, nodes = layer.get_config(), nodes_of(layer)
    dense = [projection(layer, name) for name in NAMES]
    calls = [([*_tensors(node)], _options(layer, node)) for node in nodes]
    if not calls or any(call != calls[0] for call in calls):
        return "attention that is called in several ways, or not at all"
    if calls[0][1] not in ({}, {"use_causal_mask": True}):
        return "attention with a mask or `training`, or whose scores are wanted"
    if calls[0][1] and (config["dropout"] or layer.value_dim != layer.key_dim):
        return "causal attention with dropout, or with values of another size than keys"
    tensors = [tensor for node in nodes for tensor in _tensors(node).values()]
    if any(map(carries_mask, tensors)):
        return "a mask of timesteps passes through it"
    if is_gated(layer) or config.get("sliding_window") is not None:
        return "attention with a gate or a window"
    if {len(tensor.shape) for tensor in tensors} != {3}:
        return "attention over several axes"
    if len(projection(layer, "attention_output").kernel.shape) != 3:
        return "attention with several output axes"
    return next(filter(None, (parts.obstacle(each, layer.trainable) for each in dense)), None)


def _tensors(node):
    """Returns the tensors that a call gets, by name."""
    return tensors_of_call(node.arguments.args, node.arguments.kwargs)


def _options(layer, node):
    """Returns the other arguments of a call that change what it computes, and which are True."""
    given = {**dict(enumerate(node.arguments.args[3:])), **node.arguments.kwargs}
    idle = {*_tensors(node), *(() if layer.dropout else ("training",))}
    given = {k: v for k, v in given.items() if k not in idle and v is not None}
    return {k: v is True for k, v in given.items() if v is not False or k == "training"}


def unfolded(layer):
    """Returns a graph that computes what an attention layer does, with a `Dense` projection each.

    Args:
        layer: attention of which `obstacle` returns None.

    Returns:
        A `keras.Model` of the list of tensors that the layer is called with, and a list of pairs
        of a projection of the layer and the `Dense` in its place.
    """
    config, first = layer.get_config(), nodes_of(layer)[0]
    heads, pairs = config["num_heads"], []

    def project(name, x, shape):
        old = projection(layer, name)
        new = keras.layers.Dense(
            int(old.kernel.shape[-1]) if shape is None else heads * shape[-1],
            use_bias=old.bias is not None,
            name=f"{layer.name}_{name}",
            kernel_regularizer=config["kernel_regularizer"],
            bias_regularizer=config["bias_regularizer"],
            dtype=layer.dtype_policy,
        )
        y = new(x)
        pairs.append((old, new))
        return y if shape is None else keras.layers.Reshape((-1, *shape), dtype=y.dtype)(y)

    calls = [_tensors(node) for node in nodes_of(layer)]
    inputs = {name: parts.common_input([call[name] for call in calls]) for name in calls[0]}
    query = project("query", inputs["query"], (heads, config["key_dim"]))
    key = project("key", inputs.get("key", inputs["value"]), (heads, config["key_dim"]))
    value = project("value", inputs["value"], (heads, layer.value_dim))
    y = _attended(layer, query, key, value, bool(_options(layer, first)))
    y = keras.layers.Reshape((-1, heads * layer.value_dim), dtype=y.dtype)(y)
    outputs = project("attention_output", y, None)
    model = keras.Model([*inputs.values()], outputs, name=layer.name)
    for old, new in pairs:
        kernel = keras.ops.convert_to_numpy(old.kernel)
        bias = [] if old.bias is None else [keras.ops.convert_to_numpy(old.bias).ravel()]
        new.set_weights([kernel.reshape(new.kernel.shape), *bias])
    return model, pairs


def _attended(layer, query, key, value, is_causal):
    """Attends as the layer does; all tensors have the shape (batch, length, heads, size)."""
    scale = 1 / layer.key_dim**0.5
    if not layer.dropout and layer.value_dim == layer.key_dim:  # Keras takes their shapes as equal.
        arguments = {"scale": scale, "is_causal": is_causal}
        return keras.ops.dot_product_attention(query, key, value, **arguments)
    scores = keras.ops.einsum("btnh,bsnh->bnts", query * scale, key)
    weights = keras.layers.Softmax(dtype=layer.dtype_policy)(scores)
    weights = keras.layers.Dropout(layer.dropout, dtype=layer.dtype_policy)(weights)
    return keras.ops.einsum("bnts,bsnh->btnh", weights, value)
