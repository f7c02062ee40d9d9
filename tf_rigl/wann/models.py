"""Networks as Keras models: a layer for each depth, whose zeros are missing connections."""

import keras
import numpy as np

from tf_rigl.convert import sparsifying
from tf_rigl.wann import activations


def make(network, weight, trainable):
    """Makes the model of a network; see `Network.to_keras`."""
    depths, matrix = network.depths, network.matrix()
    inputs = keras.Input((network.inputs,))
    x = keras.layers.Concatenate()([inputs, keras.ops.ones_like(inputs[:, :1])])
    order, kernels = list(range(network.inputs + 1)), {}
    for depth in range(1, depths.max() + 1):
        nodes = np.flatnonzero(depths == depth)
        # Nodes of one activation lie side by side.
        nodes = nodes[np.argsort(network.kinds[nodes], kind="stable")]
        name = f"depth_{depth}"
        kernels[name] = matrix[np.ix_(nodes, order)].T
        layer = keras.layers.Dense(len(nodes), use_bias=False, name=name)
        x = keras.layers.Concatenate()([x, _activated(layer(x), network.kinds[nodes])])
        order += nodes.tolist()
    places = [order.index(network.first_output + n) for n in range(network.outputs)]
    outputs = keras.ops.take(x, np.array(places), axis=-1)
    model = keras.Model(inputs, outputs, name="weight_agnostic")
    for name, kernel in kernels.items():
        model.get_layer(name).kernel.assign(weight * kernel)
    if not trainable:
        return model
    return sparsifying.with_masks(model, {f"{name}/kernel": k for name, k in kernels.items()})


def _activated(x, kinds):
    """Applies activations to runs of equal ones."""
    parts = [
        activations.of_tensor(kind)(x[:, begin:end]) for kind, begin, end in activations.runs(kinds)
    ]
    return parts[0] if len(parts) == 1 else keras.layers.Concatenate()(parts)
