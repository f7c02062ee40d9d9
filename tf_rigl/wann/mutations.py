"""What changes a network: one mutation for each child."""

import dataclasses

import numpy as np

from tf_rigl.wann import activations


def insert_node(network, rng):
    """Puts a node of a random activation into a connection; None if there is no connection."""
    choices = np.flatnonzero(network.enabled)
    if not len(choices):
        return None
    edge = rng.choice(choices)
    source, target = network.edges[edge]
    node = len(network.kinds)
    enabled = network.enabled.copy()
    enabled[edge] = False
    return dataclasses.replace(
        network,
        kinds=np.append(network.kinds, rng.integers(len(activations.NAMES))),
        edges=np.concatenate([network.edges, [[source, node], [node, target]]]),
        enabled=np.append(enabled, [True, True]),
    )


def add_connection(network, rng):
    """Connects two nodes that no edge connects, forward only; None if there are none."""
    depths, nodes = network.depths, np.arange(len(network.kinds))
    sources = nodes[(nodes < network.first_output) | (nodes >= network.first_hidden)]
    targets = nodes[network.first_output :]
    free = depths[sources][:, None] < depths[targets][None]
    known = np.zeros((len(nodes),) * 2, bool)
    known[tuple(network.edges.T)] = True
    free &= ~known[np.ix_(sources, targets)]
    places = np.argwhere(free)
    if not len(places):
        return None
    source, target = places[rng.integers(len(places))]
    return dataclasses.replace(
        network,
        edges=np.concatenate([network.edges, [[sources[source], targets[target]]]]),
        enabled=np.append(network.enabled, True),
    )


def enable_connection(network, rng):
    """Enables a disabled edge; None if there is none."""
    choices = np.flatnonzero(~network.enabled)
    if not len(choices):
        return None
    enabled = network.enabled.copy()
    enabled[rng.choice(choices)] = True
    return dataclasses.replace(network, enabled=enabled)


def change_activation(network, rng):
    """Gives a hidden node another activation; None if there is no hidden node."""
    if not network.hidden:
        return None
    node = rng.integers(network.first_hidden, len(network.kinds))
    others = [kind for kind in range(len(activations.NAMES)) if kind != network.kinds[node]]
    kinds = network.kinds.copy()
    kinds[node] = rng.choice(others)
    return dataclasses.replace(network, kinds=kinds)


# Function: its probability.
MUTATIONS = {
    insert_node: 0.25,
    add_connection: 0.20,
    enable_connection: 0.05,
    change_activation: 0.50,
}


def mutated(network, rng):
    """Returns a network with one mutation. One that is impossible there is drawn again."""
    left = dict(MUTATIONS)
    while left:
        functions, odds = list(left), np.array(list(left.values()))
        function = functions[rng.choice(len(functions), p=odds / odds.sum())]
        child = function(network, rng)
        if child is not None:
            return child
        del left[function]
    return network
