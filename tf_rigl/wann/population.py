"""Evaluates many networks at once, as arrays."""

import numpy as np

from tf_rigl.wann import activations


class Stack:
    """Networks of the same inputs and outputs as one array, a step for each depth.

    Args:
        networks: list of `Network`.
    """

    def __init__(self, networks):
        first = networks[0]
        self.inputs, self.outputs = first.inputs, first.outputs
        most = max(len(network.kinds) for network in networks)
        self.matrix = np.zeros((len(networks), most, most), np.float32)
        self.kinds = np.full((len(networks), most), activations.LINEAR)
        depths = np.zeros((len(networks), most), int)
        for number, network in enumerate(networks):
            size = len(network.kinds)
            self.matrix[number, :size, :size] = network.matrix()
            self.kinds[number, :size] = network.kinds
            depths[number, :size] = network.depths
        # Outputs come last in each network, whatever its depth.
        last = depths.max() + 1
        depths[:, first.first_output : first.first_hidden] = last
        self.steps = [self._nodes_at(depths == depth) for depth in range(1, last + 1)]

    def _nodes_at(self, chosen):
        """Returns the nodes of a step: places of shape (networks, nodes), and which are real."""
        most = int(chosen.sum(axis=1).max())
        if not most:
            return None
        order = np.argsort(~chosen, axis=1, kind="stable")[:, :most]
        return order, np.take_along_axis(chosen, order, axis=1)

    def run(self, x, weight):
        """Returns the outputs of all networks.

        Args:
            x: float array of shape (examples, inputs), or (networks, examples, inputs).
            weight: float, the shared weight; or an array of shape (examples,), one for each.

        Returns:
            A float32 array of shape (networks, examples, outputs).
        """
        x = np.asarray(x, np.float32)
        networks, most = self.kinds.shape
        values = np.zeros((networks, most, x.shape[-2]), np.float32)
        values[:, : self.inputs] = np.swapaxes(x, -1, -2)
        values[:, self.inputs] = 1
        weight = np.asarray(weight, np.float32)
        for step in self.steps:
            if step is None:
                continue
            places, real = step
            rows = np.take_along_axis(self.matrix, places[:, :, None], axis=1)
            sums = weight * (rows @ values)
            network, node = np.nonzero(real)
            new = sums[network, node]
            activations.apply(new, self.kinds[network, places[network, node]])
            values[network, places[network, node]] = new
        begin = self.inputs + 1
        return np.swapaxes(values[:, begin : begin + self.outputs], 1, 2)
