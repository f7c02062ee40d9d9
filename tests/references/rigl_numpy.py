"""RigL and SET in plain NumPy, written from the paper and not from the library.

Reference:

- [Rigging the Lottery](https://arxiv.org/abs/1911.11134), algorithm 1; SET's drop is
  the same, its grow is random.
"""

import math

import numpy as np

# Selection.


def descending(scores):
    """Flat indices from the highest score to the lowest: ties in index order, NaN last."""
    flat = np.ravel(scores)
    if np.issubdtype(flat.dtype, np.integer):
        return np.argsort(~flat, kind="stable")  # ~x is -x - 1: no overflow.
    return np.argsort(-flat.astype(np.float64), kind="stable")


def top_k_mask(scores, k, among=None):
    """Marks the `k` highest scores of the candidates `among`."""
    order = descending(scores)
    if among is not None:
        order = order[np.ravel(among)[order]]
    mask = np.zeros(np.size(scores), bool)
    mask[order[:k]] = True
    return mask.reshape(np.shape(scores))


# Distributions.


def zeros(sparsity, entries):
    """floor(s N); what is a whole number but for rounding, as 0.29 * 100 is, counts as whole."""
    return math.floor(round(sparsity * entries, 6))


def uniform(shapes, sparsity):
    """The same sparsity everywhere, the first layer dense."""
    return {name: 0.0 if n == 0 else sparsity for n, name in enumerate(shapes)}


def erdos_renyi(shapes, sparsity, fixed=()):
    """Density proportional to (n_in + n_out) / (n_in n_out)."""
    raw = {name: (s[-2] + s[-1]) / (s[-2] * s[-1]) for name, s in shapes.items()}
    return _scale(raw, shapes, sparsity, dict(fixed))


def erdos_renyi_kernel(shapes, sparsity, fixed=()):
    """Density proportional to sum(shape) / prod(shape)."""
    raw = {name: sum(s) / math.prod(s) for name, s in shapes.items()}
    return _scale(raw, shapes, sparsity, dict(fixed))


def _scale(raw, shapes, sparsity, fixed):
    """Finds eps so that the densities eps * raw keep as many entries as they should."""
    free = [name for name in shapes if name not in fixed]
    saturated = set()
    while True:
        unsaturated = [name for name in free if name not in saturated]
        budget = share = 0
        for name in free:
            size = math.prod(shapes[name])
            if name in saturated:
                budget -= zeros(sparsity, size)
            else:
                budget += size - zeros(sparsity, size)
                share += raw[name] * size
        eps = budget / share if unsaturated else 0.0
        highest = max((raw[name] for name in unsaturated), default=0.0)
        if eps * highest <= 1:
            break
        saturated |= {name for name in unsaturated if raw[name] == highest}
    density = {name: 1.0 if name in saturated else eps * raw[name] for name in free}
    return {name: fixed[name] if name in fixed else 1 - density[name] for name in shapes}


# Updates of a mask.


def drop_fraction_at(step, alpha, end_step):
    """The cosine of the paper: f = (alpha / 2) (1 + cos(t pi / T_end))."""
    return alpha / 2 * (1 + math.cos(step * math.pi / end_step))


def drop(weight, mask, k):
    """What is kept of `mask`: all but the `k` active entries of smallest magnitude."""
    return top_k_mask(np.abs(weight), np.count_nonzero(mask) - k, among=mask)


def grow(gradient, kept, k):
    """What is grown: of all entries that are not kept, the `k` of largest |gradient|."""
    return top_k_mask(np.abs(gradient), k, among=~kept)


def moved(weight, mask, new_mask):
    """The weight under the new mask: what was inactive starts at zero."""
    return np.where(mask & new_mask, weight, np.zeros_like(weight))


# Training.


class MLP:
    """dense - relu - dense - softmax cross-entropy under masks, trained by SGD.

    Args:
        weights: [kernel 1, bias 1, kernel 2, bias 2].
        masks: [mask of kernel 1, mask of kernel 2].
    """

    def __init__(self, weights, masks, *, learning_rate):
        self.weights = [np.array(w) for w in weights]
        self.masks = [np.array(m) for m in masks]
        self.learning_rate = learning_rate
        self.step = 0

    def gradients(self, x, labels):
        """The dense gradients of the mean loss with respect to `weights`."""
        kernel1, bias1, kernel2, bias2 = self.weights
        before = x @ kernel1 + bias1
        hidden = np.maximum(before, 0)
        logits = hidden @ kernel2 + bias2
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exp / exp.sum(axis=1, keepdims=True)
        d_logits = (probabilities - np.eye(logits.shape[1])[labels]) / len(x)
        d_before = (d_logits @ kernel2.T) * (before > 0)
        return [x.T @ d_before, d_before.sum(axis=0), hidden.T @ d_logits, d_logits.sum(axis=0)]

    def descend(self, gradients):
        """A step of SGD by masked gradients."""
        ones = np.ones(())
        for n, mask in enumerate([self.masks[0], ones, self.masks[1], ones]):
            self.weights[n] = self.weights[n] - self.learning_rate * gradients[n] * mask


class SparseMLP(MLP):
    """An `MLP` trained by algorithm 1.

    Args:
        weights, masks, learning_rate: as for `MLP`.
        drop_fraction, update_interval, end_step: those of the algorithm.
    """

    def __init__(self, weights, masks, *, learning_rate, drop_fraction, update_interval, end_step):
        super().__init__(weights, masks, learning_rate=learning_rate)
        self.drop_fraction = drop_fraction
        self.update_interval = update_interval
        self.end_step = end_step

    def is_update_step(self):
        """Whether the next batch changes the masks."""
        t = self.step
        return self.update_interval <= t < self.end_step and t % self.update_interval == 0

    def move(self, scores, choose=None):
        """Drops the smallest weights and grows the entries of largest |score|.

        Args:
            scores: for each of `weights`, such as the gradients; those of biases are not
                looked at.
            choose: function of (layer number, kept, k) that returns what grows, in
                place of the entries of largest score.
        """
        fraction = drop_fraction_at(self.step, self.drop_fraction, self.end_step)
        for layer in (0, 1):
            weight, mask = self.weights[2 * layer], self.masks[layer]
            k = zeros(fraction, np.count_nonzero(mask))  # The same floor as that of zeros.
            kept = drop(weight, mask, k)
            grown = choose(layer, kept, k) if choose else grow(scores[2 * layer], kept, k)
            self.masks[layer] = kept | grown
            self.weights[2 * layer] = moved(weight, mask, self.masks[layer])

    def train_on_batch(self, x, labels, choose=None):
        """One step: of SGD, or of the masks, as `move` makes it."""
        gradients = self.gradients(x, labels)
        if self.is_update_step():
            self.move(gradients, choose)
        else:
            self.descend(gradients)
        self.step += 1
