"""Iterative magnitude pruning in plain NumPy, from the paper.

Reference:

- [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 2.
- [Stabilizing the Lottery Ticket Hypothesis](https://arxiv.org/abs/1903.01611), for rewinding.
"""

import numpy as np

from references.pruning_numpy import global_masks
from references.rigl_numpy import MLP, top_k_mask, zeros


def kept(fraction, rounds, entries):
    """How many of the entries are left after rounds that prune a fraction of the rest."""
    return entries - zeros(1 - (1 - fraction) ** rounds, entries)


def pruned(kernels, masks, fractions, rounds, scope):
    """The largest magnitudes among what the masks leave, after rounds that prune fractions."""
    magnitudes, sizes = zip(*((np.abs(kernel), kernel.size) for kernel in kernels), strict=True)
    if scope == "global":
        return global_masks(magnitudes, kept(fractions[0], rounds, sum(sizes)), masks)
    counts = [kept(f, rounds, n) for f, n in zip(fractions, sizes, strict=True)]
    return [top_k_mask(*each) for each in zip(magnitudes, counts, masks, strict=True)]


def trained(weights, masks, batches, learning_rate):
    """The weights of an `MLP` after it has seen some batches."""
    weights = [weights[0] * masks[0], weights[1], weights[2] * masks[1], weights[3]]
    model = MLP(weights, masks, learning_rate=learning_rate)
    for x, labels in batches:
        model.descend(model.gradients(x, labels))
    return model.weights


def search(weights, batches, *, learning_rate, rounds, fractions, scope, rewind_step):
    """Trains, prunes, rewinds, repeats; returns (masks, weights, trained weights) of each round.

    Args:
        weights: [kernel 1, bias 1, kernel 2, bias 2].
        batches: list of (x, labels), what each training sees.
        fractions: what a round prunes of each kernel.
    """
    masks = [np.ones(weights[0].shape, bool), np.ones(weights[2].shape, bool)]
    start, result = 0, []
    rewound = trained(weights, masks, batches[:rewind_step], learning_rate)
    for number in range(rounds + 1):
        end = trained(weights, masks, batches[start:], learning_rate)
        weights, start = rewound, rewind_step
        result.append((masks, weights, end))
        masks = pruned([end[0], end[2]], masks, fractions, number + 1, scope)
    return result
