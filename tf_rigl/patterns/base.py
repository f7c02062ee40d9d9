"""The base class of patterns: which entries of a weight are kept or dropped together."""

from typing import NamedTuple

import tensorflow as tf

from tf_rigl._base.arguments import ChecksArguments
from tf_rigl.patterns.selection import top_k_mask


class Candidates(NamedTuple):
    """The units of a weight to select from, as flat tensors with one entry per unit."""

    scores: tf.Tensor  # Real; the highest score is the best.
    allowed: tf.Tensor  # Boolean: units that may be selected.
    first: tf.Tensor | None  # Boolean: units to select before all others; None: no such units.


class Pattern(ChecksArguments):
    """Base class of all patterns.

    A *unit* is the smallest part of a weight that is kept or dropped as a whole: one entry, or
    one block. All counts are in units. Methods and the training step see a pattern only through
    these functions.

    A new pattern overrides `units`, `unit_scores`, `unit_mask` and `expand`, as `Unstructured`
    does; one that restricts which units go together overrides `first`, as `NM` does.

    Attributes:
        min_sparsity: float, the lowest sparsity that a sparse weight can have.
        constant_fan_in: bool, whether each column of blocks keeps the same number of blocks.
    """

    min_sparsity = 0.0
    constant_fan_in = False

    def fitted(self, layer, shape, axes):
        """Returns the pattern for one weight of a layer, by default this one.

        Args:
            layer: the `keras.layers.Layer` that holds the weight.
            shape: tuple of int, the shape of the weight.
            axes: the weight's input axes and its output axes, two tuples of int.
        """
        del layer, shape, axes
        return self

    def units(self, shape) -> int:
        """Returns the number of units of a weight of this shape (a tuple of int)."""
        raise NotImplementedError

    def step(self, shape) -> int:
        """Returns the step between numbers of units that a weight of this shape can keep."""
        del shape
        return 1

    def possible(self, shape, count) -> int:
        """Returns the number of units nearest to `count`, but not 0, that a weight can keep."""
        step = self.step(shape)
        return count if step == 1 else max(1, round(count / step)) * step

    def unit_scores(self, scores):
        """Returns the score of each unit.

        Args:
            scores: real tensor of the weight's shape.

        Returns:
            A real tensor of shape (units,).
        """
        raise NotImplementedError

    def unit_mask(self, mask):
        """Tells which units a mask keeps.

        Args:
            mask: boolean tensor of the weight's shape.

        Returns:
            A boolean tensor of shape (units,).
        """
        raise NotImplementedError

    def expand(self, units, shape):
        """Returns the mask that keeps the given units; the inverse of `unit_mask`.

        Args:
            units: boolean tensor of shape (units,).
            shape: tuple of int, the shape of the weight.

        Returns:
            A boolean tensor of the weight's shape.
        """
        raise NotImplementedError

    def first(self, scores, allowed, kept, shape):
        """Tells which units are selected before all others, whatever their scores.

        Args:
            scores, allowed: real and boolean tensor of shape (units,); see `Candidates`.
            kept: boolean tensor of shape (units,), the units that are kept already.
            shape: tuple of int, the shape of the weight.

        Returns:
            A boolean tensor of shape (units,), or None if only the scores decide.
        """
        del scores, allowed, kept, shape

    def active(self, mask):
        """Returns the number of units that a boolean mask keeps, as an int32 scalar tensor."""
        return tf.math.count_nonzero(self.unit_mask(mask), dtype=tf.int32)

    def select_units(self, scores, count, allowed, kept, shape):
        """Selects units by their scores; `select` is the same for entries.

        Args:
            scores: real tensor of shape (units,).
            count: int or int32 scalar tensor, number of units to select.
            allowed: boolean tensor of shape (units,), the units that may be selected.
            kept: boolean tensor of shape (units,), the units that are kept already.
            shape: tuple of int, the shape of the weight.

        Returns:
            A boolean tensor of shape (units,).
        """
        return top_k_mask(scores, count, allowed, self.first(scores, allowed, kept, shape))

    def candidates(self, scores, among=None, kept=None) -> Candidates:
        """Returns the units that `select` selects from. Arguments are those of `select`."""
        flat, taken = self._flat(scores, kept)
        allowed = ~taken if among is None else self.unit_mask(among) & ~taken
        return Candidates(flat, allowed, self.first(flat, allowed, taken, scores.shape))

    def _flat(self, scores, kept):
        """Returns the scores of the units, and which of them are kept already."""
        flat = self.unit_scores(scores)
        return flat, tf.zeros(flat.shape, tf.bool) if kept is None else self.unit_mask(kept)

    def select(self, scores, count, among=None, kept=None):
        """Selects the `count` units of highest score.

        Args:
            scores: real tensor of the weight's shape.
            count: int or int32 scalar tensor, number of units to select.
            among: boolean tensor of the weight's shape, or None: select only units of this mask.
            kept: boolean tensor of the weight's shape, or None: a mask of units that are kept
                already. They are not selected again, and they count towards what the pattern
                allows.

        Returns:
            A boolean tensor of the weight's shape: the mask of the selected units. Of equal
            scores, the unit with the lower index wins.

        Example:

        >>> pattern = tf_rigl.patterns.Block(2, 1)
        >>> pattern.select(tf.constant([[1.0, 5.0], [1.0, 0.0]]), 1).numpy()
        array([[False,  True],
               [False,  True]])
        """
        scores = tf.convert_to_tensor(scores)
        flat, taken = self._flat(scores, kept)
        allowed = ~taken if among is None else self.unit_mask(among) & ~taken
        units = self.select_units(flat, count, allowed, taken, scores.shape)
        return self.expand(units, scores.shape)

    def keep(self, scores, count, mask):
        """Selects the `count` units of a mask that an update keeps. Others may then grow.

        Args:
            scores: real tensor of the weight's shape.
            count: int or int32 scalar tensor, number of units to keep.
            mask: boolean tensor of the weight's shape, the present mask.

        Returns:
            A boolean tensor of the weight's shape.
        """
        return self.select(scores, count, among=mask)

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Creates the pattern from the result of `get_config`."""
        return cls(**config)

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((type(self), repr(self.get_config())))

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items() if v is not None)
        return f"{type(self).__name__}({arguments})"
