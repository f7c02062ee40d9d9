"""The interface between training and a sparse weight, however the weight is stored."""

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_rigl import distributions
from tf_rigl._base import tensors


def units_kept(pattern, sparsity, shape) -> int:
    """Returns how many units of a pattern a weight of this shape keeps at a sparsity."""
    units = pattern.units(shape)
    return pattern.possible(shape, units - int(distributions.zeros(sparsity, units)))


class Slot(NamedTuple):
    """A variable of an optimizer for a weight, of the stored shape.

    Attributes:
        variable: `keras.Variable`.
        empty: float, its value for an entry that was never trained; None if the variable is a
            copy of the weight, so that such an entry has the weight's value.
        squares: bool, whether it holds a mean or a sum of squares, or a maximum, of gradients.
    """

    variable: keras.Variable
    empty: float | None = 0.0
    squares: bool = False


class Probe(NamedTuple):
    """How the gradient of a weight that is not stored dense is seen.

    Attributes:
        watched: list of tensors, to watch and to differentiate by.
        found: function of their gradients that returns the dense gradient as
            `tf_rigl._base.tensors.InFactors`, or None if the loss does not reach the weight.
    """

    watched: list
    found: Callable


class SparseWeight:
    """Base class of sparse weights: the methods that training calls on each.

    `MaskedWeight` has a dense variable that contains zeros, and a mask. `BlockSparseWeight`,
    in `tf_rigl.block_sparse`, stores only its active blocks. Code outside of these two rooms
    never asks which of the two a weight is.

    Attributes:
        path: str, unique within the model, such as "encoder/dense/kernel".
        layer: the `keras.layers.Layer` that holds the weight.
        weight: `keras.Variable`, the stored values.
        mask: the mask of the dense weight, 1 where an entry is active.
        shape: tuple of int, the shape of the dense weight.
        target_sparsity: float, the fraction of zeros to reach.
        pattern: `tf_rigl.patterns.Pattern`, which entries are kept or dropped together.
        state: dict of name to `keras.Variable` of the weight's shape and dtype: the method's
            own variables for the weight.
        trainers: `weakref.WeakSet` of the training loops that train the weight. Models that
            share the weight share the set.
        compute: str, "masked": a product with the weight multiplies zeros too; "sparse": it
            multiplies active entries only.
        gives_output: bool, whether what its layer computes goes to an output of the model without
            passing another masked weight. Training tells, see `tf_rigl.weights.ends`.
    """

    compute = "masked"

    if TYPE_CHECKING:  # Fields of one subclass are properties of the other.

        @property
        def path(self) -> str: ...
        @property
        def layer(self) -> keras.layers.Layer: ...
        @property
        def weight(self) -> keras.Variable: ...
        @property
        def mask(self) -> Any: ...
        @property
        def shape(self) -> tuple[int, ...]: ...
        @property
        def target_sparsity(self) -> Any: ...
        @property
        def pattern(self) -> Any: ...
        @property
        def gives_output(self) -> bool: ...

    def __repr__(self):
        name, target = type(self).__name__, self.target_sparsity
        return f"{name}({self.path!r}, shape={self.shape}, target_sparsity={target:.4f})"

    @property
    def is_sparse(self) -> bool:
        """True if the target sparsity is above 0. Other weights train as usual, at no cost."""
        return self.target_sparsity > 0

    def target_active(self) -> int:
        """Returns the number of active units at the target sparsity."""
        return units_kept(self.pattern, self.target_sparsity, self.shape)

    def active(self) -> int:
        """Returns the number of units that are active now."""
        return int(self.pattern.active(tf.convert_to_tensor(self.mask)))

    def dense(self, variable=None):
        """Returns the dense weight as a tensor.

        Args:
            variable: another variable of the stored shape, such as an optimizer slot: its
                dense form is returned instead.
        """
        raise NotImplementedError

    # Before training.

    def check(self, method):
        """Raises a `ValueError` if a method cannot change this weight."""
        del method

    def caution(self, optimizer):
        """Returns a warning (str) if the optimizer does not suit this weight, else None."""
        del optimizer

    # The dense gradient.

    @contextlib.contextmanager
    def probe(self):
        """Lets, within this context, the passes of the layer show the dense gradient.

        Yields:
            A `Probe`; or None if the gradient of `weight` itself is dense.
        """
        yield None

    @contextlib.contextmanager
    def overhear(self):
        """Collects, within this context, the gradients of the probe on the tape of someone else.

        Yields:
            A list that gets a pair each time that a tape differentiates by `weight`: a tensor
            that the gradient of `weight` is then computed from, and what `joined` takes.
            None if the gradient of `weight` itself is dense.
        """
        yield None

    def joined(self, heard):
        """Returns the dense gradient, given what was overheard of some passes (a list)."""
        raise NotImplementedError

    def dense_gradient(self, gradient):
        """Returns the dense gradient of the loss, given the gradient of the probe.

        Args:
            gradient: tensor or `InFactors`, summed over replicas and without the loss scale:
                what the probe found, or the gradient of `weight` if there is no probe.
        """
        return gradient

    # At each step.

    def masked_gradient(self, gradient):
        """Returns the gradient of `weight` for the optimizer, without masked entries."""
        raise NotImplementedError

    def emptied(self, slots):
        """Returns pairs (variable, value) that put zeros back wherever the mask is 0.

        Args:
            slots: iterable of `Slot`, those of the optimizer for the weight.
        """
        raise NotImplementedError

    def zero_masked(self, variable, empty=0.0):
        """Sets a variable of the stored shape to `empty` wherever the mask is 0.

        Args:
            variable: `keras.Variable`, the weight or one of its slots.
            empty: float; None means 0, the value of a masked weight. See `Slot`.
        """
        raise NotImplementedError

    def present(self) -> int:
        """Returns the number of entries that are active, or masked and yet not zero."""
        mask = tf.convert_to_tensor(self.mask)
        return int(tf.math.count_nonzero(mask)) + int(self.stray())

    def active_values(self):
        """Returns the values of the active entries, a flat NumPy array."""
        return self.dense().numpy()[keras.ops.convert_to_numpy(self.mask)]

    def stray(self):
        """Returns the number of stored entries that are masked but not zero, as int64."""
        raise NotImplementedError

    # For callbacks. Nothing here has the size of the dense weight if the weight is stored sparse.

    def footprint(self):
        """Returns which entries, or blocks, are active: a boolean NumPy array."""
        return keras.ops.convert_to_numpy(self.mask)

    def part_sizes(self):
        """Returns how many entries each place of `footprint` has: an array of its shape, or 1."""
        return 1

    def alive(self, inputs):
        """Returns which outputs have an active entry, a boolean NumPy array.

        Args:
            inputs: tuple of int, the axes of the weight over which one output sums.
        """
        return keras.ops.convert_to_numpy(self.mask).any(axis=inputs)

    def used(self, inputs):
        """Returns which outputs have an entry that is not zero; as `alive`."""
        return (self.dense().numpy() != 0).any(axis=inputs)

    def fault(self):
        """Returns what is wrong with the mask as it is stored, a str, or None."""
        mask = tf.convert_to_tensor(self.mask)
        if mask.dtype != tf.bool:
            return f"the mask is not boolean but {mask.dtype.name}"
        if tuple(mask.shape) != self.shape:
            return f"the mask has the shape {tuple(mask.shape)}, the weight {self.shape}"
        return None

    # When masks change.

    def evidence(self, gradient, seed):
        """Returns the arguments of `Method.drop_scores`: weight, gradient, mask and seed."""
        return self.dense(), gradient, tf.convert_to_tensor(self.mask), seed

    def changes(self, method, counts, gradient, seed, slots=(), *, usable=None, compiled=None):
        """Computes the new mask by a method, with the new weight and optimizer slots.

        Args:
            method: `tf_rigl.methods.Method`.
            counts: (keep, grow) and what else the method plans, int32 scalar tensors: units to
                keep and to grow.
            gradient: the result of `dense_gradient`, or None if the method needs none.
            seed: int32 tensor of shape (2,), for the random numbers of the method.
            slots: as for `emptied`.
            usable: boolean scalar tensor; if it is False, nothing changes. None means True.
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
        return self.replaced(mask, new_mask, new_weight, slots, method.slots)

    def replaced(self, mask, new_mask, new_weight, slots=(), start="zero"):
        """Returns pairs (variable, new value) that replace the mask.

        Args:
            mask, new_mask: boolean tensors of the dense weight's shape.
            new_weight: tensor of the same shape.
            slots: as for `emptied`.
            start: str, "zero" or "mean", see `Method.slots`.
        """
        raise NotImplementedError

    def layout(self):
        """Returns a tensor that says which entry each stored value is, for `followed`."""
        raise NotImplementedError

    def followed(self, layout, slots):
        """Returns pairs (variable, value) of slots after a change of the mask elsewhere.

        Args:
            layout: the result of `layout` before the change.
            slots: as for `emptied`.
        """
        raise NotImplementedError

    def set_mask(self, mask):
        """Replaces the mask, and sets the weight to zero where the new mask is 0."""
        raise NotImplementedError

    def check_mask(self, mask):
        """Raises if a mask has another shape than the weight."""
        shape = tuple(mask.shape if hasattr(mask, "shape") else np.shape(mask))
        if shape != tuple(self.shape):
            raise ValueError(
                f"Argument `mask` must have the shape of {self.path!r}, {tuple(self.shape)}. "
                f"Received: a mask of shape {shape}"
            )


class StoresSparse:
    """Base class of layers that store weights in another form than a dense variable."""

    if TYPE_CHECKING:  # Of the layer.
        built: bool

    def sparse_weight(self, path) -> SparseWeight:
        """Returns the sparse weight of the built layer, under a path."""
        raise NotImplementedError

    def stored(self, attribute):
        """Returns the variable that stores an attribute and the shape it stands for, or None."""
        raise NotImplementedError


def set_all(pairs):
    """Assigns values to variables outside of a training step."""
    for variable, value in pairs:
        variable.assign(value)


def emptied(mask, slots, weight=None, warm=None):
    """Returns pairs (variable, value) that empty slots wherever a mask is 0.

    Args:
        mask: boolean tensor or variable.
        slots: iterable of `Slot`.
        weight: tensor, the value there of slots that are copies of the weight; None means 0.
        warm: boolean tensor of entries at which slots of squares get, instead, their mean over
            the entries whose mask is 1; None: nowhere.
    """
    pairs = []
    for variable, empty, squares in slots:
        value = tf.convert_to_tensor(variable.value)
        if empty is None and weight is not None:
            new = tf.where(tf.convert_to_tensor(mask), value, tf.cast(weight, value.dtype))
        else:
            new = tensors.where(mask, value, empty or 0.0)
        if squares and warm is not None:
            new = tf.where(warm, tensors.mean_where(tf.convert_to_tensor(mask), value), new)
        pairs.append((variable, new))
    return pairs
