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
        self.outputs, begin = first.outputs, first.first_output
        most = max(len(network.kinds) for network in networks)
        matrix = np.zeros((len(networks), most, most), np.float32)
        self.kinds = np.full((len(networks), most - begin), activations.LINEAR)
        depths = np.zeros(self.kinds.shape, int)
        for number, network in enumerate(networks):
            size = len(network.kinds)
            matrix[number, :size, :size] = network.matrix()
            self.kinds[number, : size - begin] = network.kinds[begin:]
            depths[number, : size - begin] = network.depths[begin:]
        # Outputs come last in each network, whatever its depth, and lead nowhere.
        last = depths.max() + 1
        depths[:, : self.outputs] = last
        self._first, self._bias = (
            matrix[:, begin:, : begin - 1].copy(),
            matrix[:, begin:, begin - 1],
        )
        self._inner = matrix[:, begin:, first.first_hidden :]
        steps = (self._computing(depths == depth) for depth in range(1, last + 1))
        self._steps = [step for step in steps if step is not None]

    def _computing(self, chosen):
        """Returns what it takes to compute the chosen nodes of each network, or None."""
        most = int(chosen.sum(axis=1).max())
        if not most:
            return None
        order = np.argsort(~chosen, axis=1, kind="stable")[:, :most]
        network, row = np.nonzero(np.take_along_axis(chosen, order, axis=1))
        kinds = self.kinds[network, order[network, row]]
        # Nodes of one activation lie side by side.
        sort = np.argsort(kinds, kind="stable")
        network, row, kinds = network[sort], row[sort], kinds[sort]
        rows = np.take_along_axis(self._inner, order[:, :, None], axis=1)
        return rows, network, row, order[network, row], activations.runs(kinds)

    def sums(self, x) -> np.ndarray:
        """Returns what the inputs and the bias add up to at each node, with a weight of 1.

        Args:
            x: float array of shape (examples, inputs), or (networks, examples, inputs).

        Returns:
            A float32 array of shape (networks, nodes, examples).
        """
        x = np.swapaxes(np.asarray(x, np.float32), -1, -2)
        first = self._first
        if x.ndim == 2:  # One product, not one for each network.
            found = (first.reshape(-1, len(x)) @ x).reshape(*first.shape[:2], -1)
        else:
            found = first @ x
        found += self._bias[..., None]
        return found

    def outputs_of(self, x, weight) -> np.ndarray:
        """Returns the outputs of all networks for inputs, see `sums`, and a weight, see `run`."""
        return self.run(self.sums(x), weight)

    def run(self, sums, weight) -> np.ndarray:
        """Returns the outputs of all networks.

        Args:
            sums: array that `sums` returned.
            weight: float, the shared weight; or an array of shape (examples,), one for each.

        Returns:
            A float32 array of shape (networks, examples, outputs).
        """
        values, weight = np.zeros_like(sums), np.asarray(weight, np.float32)
        hidden = values[:, self.outputs :]
        for rows, network, row, place, runs in self._steps:
            new = (rows @ hidden)[network, row]
            new += sums[network, place]
            new *= weight
            for kind, begin, end in runs:
                new[begin:end] = activations.of_array(kind)(new[begin:end])
            values[network, place] = new
        return np.swapaxes(values[:, : self.outputs], 1, 2)
