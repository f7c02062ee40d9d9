"""SNFS, SNIP, gradual pruning and variants of RigL in plain NumPy, from the papers.

Reference:

- [SNIP](https://arxiv.org/abs/1810.02340), equation 5 and algorithm 1.
- [Sparse Networks from Scratch](https://arxiv.org/abs/1907.04840), section 3; without its
  redistribution between layers.
- [To prune, or not to prune](https://arxiv.org/abs/1710.01878), equation 1.
"""

import numpy as np

from references.rigl_numpy import MLP, SparseMLP, top_k_mask, zeros

# Scores and schedules.


def snip_scores(weights, gradients):
    """The sensitivity |w g| of the loss to each connection."""
    return [np.abs(w * g) for w, g in zip(weights, gradients, strict=True)]


def layer_masks(scores, counts):
    """The `counts` highest scores of each layer."""
    return [top_k_mask(s, k) for s, k in zip(scores, counts, strict=True)]


def global_masks(scores, count, masks=None):
    """The `count` highest scores of all layers together, of what `masks` leaves."""
    flat = np.concatenate([s.ravel() for s in scores])
    among = None if masks is None else np.concatenate([m.ravel() for m in masks])
    chosen = top_k_mask(flat, count, among)
    ends = np.cumsum([s.size for s in scores])[:-1]
    return [part.reshape(s.shape) for part, s in zip(np.split(chosen, ends), scores, strict=True)]


def polynomial_sparsity(t, initial, final, begin, end, power=3):
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt)) ** 3."""
    way = min(1.0, max(0.0, (t - begin) / (end - begin)))
    return final + (initial - final) * (1 - way) ** power


def is_pruning_batch(t, begin, end, frequency):
    """t_0, t_0 + dt, ..., and the end."""
    return begin <= t <= end and ((t - begin) % frequency == 0 or t == end)


def snfs_momentum(past, gradient, beta):
    """An exponential mean of the dense gradient."""
    return beta * past + (1 - beta) * gradient


# Training.


class SnipMLP(MLP):
    """Scored on its first batches, pruned once, trained under that mask."""

    def __init__(self, weights, *, learning_rate, sparsity, scope, batches):
        kernels = [weights[0], weights[2]]
        super().__init__(
            weights, [np.ones(k.shape, bool) for k in kernels], learning_rate=learning_rate
        )
        self.sparsity, self.scope, self.batches = sparsity, scope, batches
        self.seen = []

    def train_on_batch(self, x, labels):
        gradients = self.gradients(x, labels)
        if self.step >= self.batches:
            self.descend(gradients)
        else:
            self.seen.append(gradients)
            if len(self.seen) == self.batches:
                self.prune()
        self.step += 1

    def prune(self):
        mean = [np.mean(each, axis=0) for each in zip(*self.seen, strict=True)]
        kernels = self.weights[::2]
        scores = snip_scores(kernels, mean[::2])
        sizes = [k.size for k in kernels]
        if self.scope == "global":
            total = sum(sizes)
            self.masks = global_masks(scores, total - zeros(self.sparsity, total))
        else:
            self.masks = layer_masks(scores, [n - zeros(self.sparsity, n) for n in sizes])
        self.weights[::2] = [k * m for k, m in zip(kernels, self.masks, strict=True)]


class MagnitudeMLP(MLP):
    """Pruned by magnitude before the batches of a schedule, counted from 1.

    Args:
        count: function of (number of entries, sparsity) that returns how many are kept.
        count_all: function of (list of numbers of entries, sparsity), for a global scope.
        schedule: initial, final, begin, end, power, frequency.
    """

    def __init__(self, weights, *, learning_rate, scope, count, count_all, frequency, **schedule):
        kernels = [weights[0], weights[2]]
        super().__init__(
            weights, [np.ones(k.shape, bool) for k in kernels], learning_rate=learning_rate
        )
        self.scope, self.frequency, self.schedule = scope, frequency, schedule
        self.count, self.count_all = count, count_all

    def train_on_batch(self, x, labels):
        t = self.step + 1
        if is_pruning_batch(t, self.schedule["begin"], self.schedule["end"], self.frequency):
            self.prune(polynomial_sparsity(t, **self.schedule))
        self.descend(self.gradients(x, labels))
        self.step += 1

    def prune(self, sparsity):
        kernels = self.weights[::2]
        magnitudes = [np.abs(k) for k in kernels]
        if self.scope == "global":
            total = self.count_all([k.size for k in kernels], sparsity)
            self.masks = global_masks(magnitudes, total, self.masks)
        else:
            counts = [self.count(k.size, sparsity) for k in kernels]
            self.masks = [
                top_k_mask(w, k, m) for w, k, m in zip(magnitudes, counts, self.masks, strict=True)
            ]
        self.weights[::2] = [k * m for k, m in zip(kernels, self.masks, strict=True)]


class SnfsMLP(SparseMLP):
    """Grows by the momentum of dense gradients, which ends with the last update."""

    def __init__(self, *args, beta, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta = beta
        self.momentum = [np.zeros(w.shape) for w in self.weights]

    def train_on_batch(self, x, labels):
        gradients = self.gradients(x, labels)
        last = (self.end_step - 1) // self.update_interval * self.update_interval
        if self.step <= last:
            self.momentum = [
                snfs_momentum(m, g, self.beta)
                for m, g in zip(self.momentum, gradients, strict=True)
            ]
        if self.is_update_step():
            self.move(self.momentum)
        else:
            self.descend(gradients)
        self.step += 1


class AveragingMLP(SparseMLP):
    """Grows by the mean of the gradients of the last `batches` batches."""

    def __init__(self, *args, batches, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = batches
        self.seen = []

    def train_on_batch(self, x, labels):
        gradients = self.gradients(x, labels)
        self.seen = [*self.seen, gradients][-self.batches :]
        if self.is_update_step():
            self.move([np.mean(each, axis=0) for each in zip(*self.seen, strict=True)])
        else:
            self.descend(gradients)
        self.step += 1


class DescendingMLP(SparseMLP):
    """Descends on update steps too, and then moves masks by the same gradient."""

    def train_on_batch(self, x, labels):
        gradients = self.gradients(x, labels)
        self.descend(gradients)
        if self.is_update_step():
            self.move(gradients)
        self.step += 1
