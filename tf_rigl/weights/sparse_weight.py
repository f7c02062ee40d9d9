"""What training asks of a sparse weight, however the weight is stored."""

import contextlib

import tensorflow as tf

from tf_rigl import distributions
from tf_rigl._base import tensors


class SparseWeight:
    """Base class of sparse weights: the questions that training asks of each.

    `MaskedWeight` keeps the dense variable with zeros in it and a mask beside it.
    `tf_rigl.block_sparse` has one that stores the blocks that are there. Nobody outside of
    these two rooms asks which of them a weight is.

    Attributes:
        path: str, unique within the model, such as "encoder/dense/kernel".
        layer: the `keras.layers.Layer` that holds the weight.
        weight: `keras.Variable`, what is stored of the weight.
        mask: the mask of the dense weight, 1 where an entry is active.
        shape: tuple of int, the shape of the dense weight.
        target_sparsity: float, the fraction of zeros to reach.
        pattern: `tf_rigl.patterns.Pattern`, which entries are kept or dropped together.
        state: dict of name to `keras.Variable` of the weight's shape and dtype, what the
            method keeps for the weight beside its mask.
        compute: str, what a product with the weight computes. "masked": zeros too. "sparse":
            only what is there.
    """

    compute = "masked"

    def __repr__(self):
        name, target = type(self).__name__, self.target_sparsity
        return f"{name}({self.path!r}, shape={self.shape}, target_sparsity={target:.4f})"

    @property
    def is_sparse(self) -> bool:
        """True if the weight has zeros: a layer that stays dense costs nothing."""
        return self.target_sparsity > 0

    def target_active(self) -> int:
        """The number of units that are active at the target sparsity."""
        units = self.pattern.units(self.shape)
        zeros = int(distributions.zeros(self.target_sparsity, units))
        return self.pattern.possible(self.shape, units - zeros)

    def active(self) -> int:
        """The number of units that are active now."""
        return int(self.pattern.active(tf.convert_to_tensor(self.mask)))

    def dense(self, variable=None):
        """Returns the dense weight as a tensor.

        Args:
            variable: another variable of the stored shape, such as an optimizer slot, to
                return in its dense form.
        """
        raise NotImplementedError

    # Before training.

    def check(self, method):
        """Raises a `ValueError` if a method cannot change this weight."""
        del method

    def caution(self, optimizer):
        """What to warn of when this weight is trained by an optimizer: str, or None."""
        del optimizer

    # What the dense gradient is taken from.

    @contextlib.contextmanager
    def probe(self):
        """Within this context, gradients with respect to what it gives are dense ones.

        Yields:
            A tensor to watch and to take gradients by; or None if the gradient of `weight`
            itself is dense.
        """
        yield None

    def dense_gradient(self, gradient):
        """Returns the dense gradient of the loss, given that of the probe (or of `weight`).

        Args:
            gradient: tensor, summed over replicas and unscaled.
        """
        return gradient

    # At each step.

    def masked_gradient(self, gradient):
        """Returns the gradient of `weight` as the optimizer may see it."""
        raise NotImplementedError

    def emptied(self, slots):
        """Pairs of variables and values that put zeros back wherever the mask is 0.

        Args:
            slots: iterable of (variable of the stored shape, value of an empty entry), what
                the optimizer keeps for the weight.
        """
        raise NotImplementedError

    def zero_masked(self, variable, empty=0.0):
        """Sets a variable of the stored shape to `empty` wherever the mask is 0."""
        raise NotImplementedError

    def stray(self):
        """The number of stored entries that are not zero where the mask is 0, as int64."""
        raise NotImplementedError

    # When masks change.

    def evidence(self, gradient, seed):
        """The arguments of `Method.drop_scores`: weight, gradient, mask and seed."""
        return self.dense(), gradient, tf.convert_to_tensor(self.mask), seed

    def changes(self, method, counts, gradient, seed, slots=(), *, usable=None, compiled=None):
        """Changes the mask by a method, and all that goes with it.

        Args:
            method: `tf_rigl.methods.Method`.
            counts: (keep, grow), int32 scalar tensors: units to keep and to grow.
            gradient: what `dense_gradient` returned, or None if the method needs none.
            seed: int32 tensor of shape (2,), for what the method draws at random.
            slots: as for `emptied`.
            usable: boolean scalar tensor; if it is False, nothing changes. None: True.
            compiled: `tf_rigl._base.tensors.Compiled`, which keeps compiled functions; None
                to compile nothing.

        Returns:
            A list of pairs (variable, new value).
        """
        weight, gradient, mask, seed = self.evidence(gradient, seed)
        update = method.update
        if compiled is not None and method.jit_compile:
            update = compiled(update, self.shape)
        new_mask, new_weight = update(weight, gradient, mask, *counts, self.pattern, seed)
        if usable is not None:
            new_mask = tf.where(usable, new_mask, mask)
            new_weight = tf.where(usable, new_weight, weight)
        return self.replaced(mask, new_mask, new_weight, slots)

    def replaced(self, mask, new_mask, new_weight, slots=()):
        """Pairs of variables and values that put another mask in place.

        Args:
            mask, new_mask: boolean tensors of the dense weight's shape.
            new_weight: tensor of that shape.
            slots: as for `emptied`.
        """
        raise NotImplementedError

    def set_mask(self, mask):
        """Replaces the mask, and sets the weight to zero where the new one is 0."""
        raise NotImplementedError


def set_all(pairs):
    """Assigns values to variables, outside of a training step."""
    for variable, value in pairs:
        variable.assign(value)


def emptied(mask, pairs):
    """Pairs of variables and values with `empty` wherever a mask is 0.

    Args:
        mask: boolean tensor or variable.
        pairs: iterable of (variable, empty).
    """
    values = [(variable, tf.convert_to_tensor(variable.value), empty) for variable, empty in pairs]
    return [(variable, tensors.where(mask, value, empty)) for variable, value, empty in values]
