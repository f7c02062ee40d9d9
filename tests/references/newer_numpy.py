"""The methods since RigL in plain NumPy, written from the papers' formulas, with loops.

Reference:

- [GraNet](https://arxiv.org/abs/2106.10404), [AC/DC](https://arxiv.org/abs/2106.12379),
  [SRigL](https://arxiv.org/abs/2305.02299), [MEST](https://arxiv.org/abs/2110.14032),
  [SR-STE](https://arxiv.org/abs/2102.04010), [GraSP](https://arxiv.org/abs/2002.07376).
"""

import math

import numpy as np

from references.pruning_numpy import global_masks, layer_masks
from references.rigl_numpy import MLP, descending, drop_fraction_at, grow, moved, zeros


class Updating(MLP):
    """An `MLP` whose masks change every `interval` steps, from the first of them on."""

    def __init__(self, weights, masks, *, learning_rate, sparsity, interval, end_step):
        super().__init__(weights, masks, learning_rate=learning_rate)
        self.interval, self.end_step = interval, end_step
        self.sizes = [mask.size for mask in self.masks]
        self.targets = [size - zeros(sparsity, size) for size in self.sizes]

    def is_update_step(self):
        return self.interval <= self.step < self.end_step and self.step % self.interval == 0

    @property
    def kernels(self):
        return self.weights[::2]

    def replace(self, layer, mask):
        self.weights[2 * layer] = moved(self.weights[2 * layer], self.masks[layer], mask)
        self.masks[layer] = mask


class GraNetMLP(Updating):
    """Prunes all layers together, then moves a fraction of each; after the optimizer."""

    def __init__(self, *args, initial, prune_end, drop_fraction, **kwargs):
        super().__init__(*args, **kwargs)
        self.initial, self.prune_end, self.drop_fraction = initial, prune_end, drop_fraction

    def sparsity_now(self):
        total = sum(self.sizes)
        final = (total - sum(self.targets)) / total
        way = (self.step - self.interval) / (self.prune_end - self.interval)
        return self.initial + (final - self.initial) * (1 - (1 - min(way, 1.0)) ** 3)

    def train_on_batch(self, x, labels):
        gradients = self.gradients(x, labels)
        self.descend(gradients)
        if self.is_update_step():
            total, active = sum(self.sizes), sum(int(mask.sum()) for mask in self.masks)
            count = min(active, total - zeros(self.sparsity_now(), total))
            left = global_masks([np.abs(k) for k in self.kernels], count, self.masks)
            rate = drop_fraction_at(self.step, self.drop_fraction, self.end_step)
            for layer, mask in enumerate(left):
                n = int(mask.sum())
                k = zeros(rate, n)
                (kept,) = layer_masks([np.where(mask, np.abs(self.kernels[layer]), -1)], [n - k])
                self.replace(layer, kept | grow(gradients[2 * layer], kept, k))
        self.step += 1


class AcdcMLP(MLP):
    """Dense and sparse phases in turn."""

    def __init__(self, weights, *, learning_rate, sparsity, scope, warm_up, phase, last):
        masks = [np.ones(k.shape, bool) for k in weights[::2]]
        super().__init__(weights, masks, learning_rate=learning_rate)
        self.counts = [m.size - zeros(sparsity, m.size) for m in masks]
        self.scope = scope
        # The kind of each step, written out.
        kinds = ["dense"] * warm_up
        while len(kinds) < last[0]:
            kinds += ["sparse"] * phase + ["dense"] * phase
        self.kinds = kinds[: last[0]] + ["dense"] * (last[1] - last[0])

    def kind(self, step):
        return self.kinds[step] if 0 <= step < len(self.kinds) else "sparse"

    def train_on_batch(self, x, labels):
        now, before = self.kind(self.step), self.kind(self.step - 1) if self.step else "dense"
        if now != before and now == "dense":
            self.masks = [np.ones_like(mask) for mask in self.masks]
        elif now != before:
            scores = [np.abs(k) for k in self.weights[::2]]
            if self.scope == "global":
                self.masks = global_masks(scores, sum(self.counts))
            else:
                self.masks = layer_masks(scores, self.counts)
            for layer, mask in enumerate(self.masks):
                self.weights[2 * layer] = self.weights[2 * layer] * mask
        self.descend(self.gradients(x, labels))
        self.step += 1


class SrigLMLP(Updating):
    """As many inputs for each output, some of which are ablated."""

    def __init__(self, *args, gamma, drop_fraction, **kwargs):
        super().__init__(*args, **kwargs)
        self.gamma, self.drop_fraction = gamma, drop_fraction
        self.ablated = 0

    def train_on_batch(self, x, labels):
        gradients = self.gradients(x, labels)
        if self.is_update_step():
            rate = drop_fraction_at(self.step, self.drop_fraction, self.end_step)
            for layer in (0, 1):
                mask = self.new_mask(layer, np.abs(gradients[2 * layer]), rate)
                self.replace(layer, mask)
        else:
            self.descend(gradients)
        self.step += 1

    def new_mask(self, layer, slope, rate):
        size, old, total = np.abs(self.kernels[layer]), self.masks[layer], self.targets[layer]
        inputs, outputs = size.shape
        active = int(old.sum())
        drops = zeros(rate, active)
        everything = np.ones_like(old)
        salient = best(size, active - drops, old) | best(slope, drops, everything)
        counts = [int(salient[:, j].sum()) for j in range(outputs)]
        stays = list(range(outputs))
        if layer == 0:  # The last one keeps all.
            least = max(1, math.ceil(total / inputs))
            needed = max(1, int(self.gamma * (total // outputs)))
            stays = [j for j in stays if counts[j] >= needed]
            if len(stays) < least:
                stays = sorted(range(outputs), key=lambda j: (-counts[j], j))[:least]
            self.ablated += outputs - len(stays)
        each = min(inputs, max(1, total // len(stays)))
        present = old & np.isin(np.arange(outputs), stays)
        survivors = best(size, min(active - drops, int(present.sum())), present)
        mask = np.zeros_like(old)
        for j in stays:
            mine = [i for i in descending(size[:, j]) if survivors[i, j]][:each]
            others = [i for i in descending(slope[:, j]) if i not in mine]
            mask[mine + others[: each - len(mine)], j] = True
        return mask


def best(scores, count, among):
    """The `count` highest scores among some entries."""
    order = [n for n in descending(scores) if among.ravel()[n]]
    mask = np.zeros(scores.size, bool)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)


class MestMLP(Updating):
    """Drops by weight and gradient; what grows at random is read off."""

    def __init__(self, *args, margins, gradient_weight, soft, **kwargs):
        super().__init__(*args, **kwargs)
        self.margins, self.gradient_weight, self.soft = margins, gradient_weight, soft

    def train_on_batch(self, x, labels, choose):
        gradients = self.gradients(x, labels)
        if self.is_update_step():
            margin = self.margins[self.step * len(self.margins) // self.end_step]
            for layer, target in enumerate(self.targets):
                k = zeros(margin, target)
                score = np.abs(self.kernels[layer])
                score = score + self.gradient_weight * np.abs(gradients[2 * layer])
                kept = best(score, target if self.soft else target - k, self.masks[layer])
                self.replace(layer, kept | choose(layer, kept, k))
        elif any(k.any() for k in self.kernels):
            self.descend(gradients)
        self.step += 1


class SteMLP(MLP):
    """Dense weights that train by a straight-through gradient; `choose` makes masks of them."""

    def __init__(self, weights, dense, *, learning_rate, decay, choose):
        super().__init__(weights, [choose(d) for d in dense], learning_rate=learning_rate)
        self.dense, self.decay, self.choose = [np.array(d) for d in dense], decay, choose
        self.use()

    def use(self):
        self.masks = [self.choose(dense) for dense in self.dense]
        for layer, (dense, mask) in enumerate(zip(self.dense, self.masks, strict=True)):
            self.weights[2 * layer] = dense * mask

    def train_on_batch(self, x, labels):
        gradients = self.gradients(x, labels)
        for layer, mask in enumerate(self.masks):
            slope = gradients[2 * layer] + self.decay * ~mask * self.dense[layer]
            self.dense[layer] = self.dense[layer] - self.learning_rate * slope
            bias = 2 * layer + 1
            self.weights[bias] = self.weights[bias] - self.learning_rate * gradients[bias]
        self.use()
        self.step += 1


def grasp_scores(model, x, labels, step=1e-6):
    """-w (H g) of both kernels, with H g by central differences of the gradient."""
    start = [np.array(w) for w in model.weights]
    slopes = model.gradients(x, labels)[::2]
    found = []
    for sign in (1, -1):
        for layer, slope in enumerate(slopes):
            model.weights[2 * layer] = start[2 * layer] + sign * step * slope
        found.append(model.gradients(x, labels)[::2])
    model.weights = start
    products = [(up - down) / (2 * step) for up, down in zip(*found, strict=True)]
    return [-w * p for w, p in zip(start[::2], products, strict=True)]
