"""Edge-popup in plain NumPy, written from the paper and not from the library.

Reference:

- [What's Hidden in a Randomly Weighted Neural Network?](https://arxiv.org/abs/1911.13299),
  section 3 and appendix A.
"""

import numpy as np

from tests.references.rigl_numpy import MLP, top_k_mask, zeros


class EdgePopupMLP(MLP):
    """An `MLP` whose kernels are frozen, and chosen from by scores that SGD trains.

    Args:
        weights: [kernel 1, bias 1, kernel 2, bias 2], the kernels as they are drawn.
        scores: the first scores of the two kernels.
        sparsity: of each kernel.
        learning_rate, momentum: those of SGD.
        train_biases: bool.
    """

    def __init__(self, weights, scores, *, sparsity, learning_rate, momentum, train_biases):
        super().__init__(weights, [], learning_rate=learning_rate)
        self.frozen = [np.array(w) for w in weights[::2]]
        self.scores = [np.array(s, np.float64) for s in scores]
        self.kept = [w.size - zeros(sparsity, w.size) for w in self.frozen]
        self.momentum, self.train_biases = momentum, train_biases
        self.velocities = [np.zeros(w.shape) for w in self.weights]
        self.choose()

    def choose(self):
        """The `kept` highest scores of each kernel are its mask."""
        self.masks = [top_k_mask(s, k) for s, k in zip(self.scores, self.kept, strict=True)]
        self.weights[::2] = [w * m for w, m in zip(self.frozen, self.masks, strict=True)]

    def moved(self, n, gradient):
        """By how much SGD with momentum moves the n-th parameter."""
        self.velocities[n] = self.momentum * self.velocities[n] - self.learning_rate * gradient
        return self.velocities[n]

    def train_on_batch(self, x, labels):
        gradients = self.gradients(x, labels)  # At the masked kernels, of all their entries.
        for layer in (0, 1):
            self.scores[layer] += self.moved(2 * layer, gradients[2 * layer] * self.frozen[layer])
            if self.train_biases:
                bias = 2 * layer + 1
                self.weights[bias] = self.weights[bias] + self.moved(bias, gradients[bias])
        self.choose()


def block_mask(scores, rows, count):
    """The `count` blocks of `rows` inputs by one output whose scores have the highest sums."""
    sums = scores.reshape(-1, rows, scores.shape[1]).sum(axis=1)
    return np.repeat(top_k_mask(sums, count), rows, axis=0)
