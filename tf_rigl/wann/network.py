"""A network as a graph: nodes with activations, connections without weights of their own."""

import dataclasses
import functools

import numpy as np

from tf_rigl._base.arguments import check_number
from tf_rigl.wann import activations


@dataclasses.dataclass(frozen=True, eq=False)  # `==` of arrays is no bool.
class Network:
    """A graph in which all connections share one weight.

    Nodes are numbered: first the inputs, then the bias (which is 1), the outputs, and the hidden
    nodes in the order in which they came. Outputs are linear.

    Attributes:
        inputs, outputs: int, the numbers of input and output nodes.
        kinds: int array, the activation of each node, see `tf_rigl.wann.activations.NAMES`.
        edges: int array of shape (edges, 2), source and target of each.
        enabled: boolean array of shape (edges,), which edges are connections.

    Reference:

    - [Weight Agnostic Neural Networks](https://arxiv.org/abs/1906.04358), section 3.
    """

    inputs: int
    outputs: int
    kinds: np.ndarray
    edges: np.ndarray
    enabled: np.ndarray

    def __repr__(self):
        return (
            f"Network(inputs={self.inputs}, outputs={self.outputs}, hidden={self.hidden}, "
            f"connections={self.connections})"
        )

    @property
    def connections(self) -> int:
        """The number of connections."""
        return int(np.count_nonzero(self.enabled))

    @property
    def hidden(self) -> int:
        """The number of hidden nodes."""
        return len(self.kinds) - self.first_hidden

    @property
    def first_output(self) -> int:
        """The number of the first output node."""
        return self.inputs + 1

    @property
    def first_hidden(self) -> int:
        """The number that the first hidden node has, or would have."""
        return self.inputs + 1 + self.outputs

    @functools.cached_property
    def depths(self) -> np.ndarray:
        """The depth of each node, by all edges: 0 for inputs and bias; outputs are the deepest.

        An edge always leads to a larger depth.
        """
        depths = np.zeros(len(self.kinds), int)
        depths[self.first_output :] = 1
        hidden = ~self._is_output(self.edges[:, 1])
        source, target = self.edges[hidden].T
        for _ in range(len(self.kinds)):
            before = depths.copy()
            np.maximum.at(depths, target, depths[source] + 1)
            if (before == depths).all():
                break
        depths[self.first_output : self.first_hidden] = depths.max() + (self.hidden > 0)
        return depths

    def _is_output(self, nodes):
        return (nodes >= self.first_output) & (nodes < self.first_hidden)

    def matrix(self) -> np.ndarray:
        """The connections as a boolean matrix of shape (nodes, nodes): target by source."""
        found = np.zeros((len(self.kinds),) * 2, bool)
        source, target = self.edges[self.enabled].T
        found[target, source] = True
        return found

    def scores(self, task, weights) -> np.ndarray:
        """Returns the score of a task for each shared weight."""
        return task.scores([self], np.atleast_1d(np.asarray(weights, float)))[0]

    def evaluate(self, task, weight) -> float:
        """Returns the score of a task with a shared weight."""
        return float(self.scores(task, weight)[0])

    def to_keras(self, weight=1.0, trainable=False):
        """Makes a Keras model that computes what the network does with a shared weight.

        Args:
            weight: float, the weight of each connection.
            trainable: bool. True: a `tf_rigl.SparseModel` whose masks are the connections, so that
                each connection has a weight that can be trained; False: an ordinary model.

        Returns:
            A model of inputs of shape (batch, inputs), not compiled.

        Raises:
            ValueError: if `weight` is no finite number.
        """
        from tf_rigl.wann import models

        weight = check_number("weight", weight)
        return models.make(self, weight, trainable)


def start(inputs, outputs, density, rng) -> Network:
    """Returns a network without hidden nodes.

    Args:
        inputs, outputs: int.
        density: float in [0, 1], the probability that an edge from an input, or from the bias, to
            an output is enabled.
        rng: `np.random.Generator`.
    """
    sources, targets = np.meshgrid(np.arange(inputs + 1), inputs + 1 + np.arange(outputs))
    edges = np.stack([sources.ravel(), targets.ravel()], axis=1)
    kinds = np.full(inputs + 1 + outputs, activations.LINEAR)
    return Network(inputs, outputs, kinds, edges, rng.random(len(edges)) < density)
