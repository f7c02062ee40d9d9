"""What a pattern has to say: which entries of a weight live and die together."""

from typing import NamedTuple

import tensorflow as tf

from tf_rigl.patterns.selection import top_k_mask


class Candidates(NamedTuple):
    """The units of a weight among which a choice is made, as flat tensors of one length."""

    scores: tf.Tensor  # Real, the highest is the best.
    allowed: tf.Tensor  # Boolean, what may be chosen.
    first: tf.Tensor | None  # Boolean, what is chosen before all others; None: no such.


class Pattern:
    """Base class of all patterns.

    A *unit* is the smallest thing that is kept or dropped as a whole: one entry, or one
    block. Counts are in units. Methods and the training step know nothing else of a
    pattern.

    Attributes:
        min_sparsity: float, the least sparsity that a sparse weight can have.
    """

    min_sparsity = 0.0

    def fitted(self, layer, shape, axes):
        """The pattern for one weight of a layer: this one, by default.

        Args:
            layer: `keras.layers.Layer` that holds the weight.
            shape: tuple of int, that of the weight.
            axes: the weight's input axes and its output axes, two tuples of int.
        """
        del layer, shape, axes
        return self

    def units(self, shape) -> int:
        """How many units a weight of this shape has."""
        raise NotImplementedError

    def step(self, shape) -> int:
        """By how many units at once a weight of this shape can have more or fewer."""
        del shape
        return 1

    def possible(self, shape, count) -> int:
        """The number of units nearest to `count`, not 0, that a weight can have."""
        step = self.step(shape)
        return count if step == 1 else max(1, round(count / step)) * step

    def unit_scores(self, scores):
        """The score of each unit, as a flat tensor."""
        raise NotImplementedError

    def unit_mask(self, mask):
        """Which units of a mask are kept, as a flat boolean tensor."""
        raise NotImplementedError

    def expand(self, units, shape):
        """The mask of which `unit_mask` is `units`.

        Args:
            units: flat boolean tensor.
            shape: tuple of int, that of the weight.
        """
        raise NotImplementedError

    def first(self, scores, allowed, kept, shape):
        """Which units are chosen before all others; None: the score alone decides.

        Args:
            scores, allowed: see `Candidates`.
            kept: flat boolean tensor, units that are kept in any case.
            shape: tuple of int, that of the weight.
        """
        del scores, allowed, kept, shape

    def active(self, mask):
        """How many units of a boolean mask are kept, as an int32 scalar tensor."""
        return tf.math.count_nonzero(self.unit_mask(mask), dtype=tf.int32)

    def candidates(self, scores, among=None, kept=None) -> Candidates:
        """The units among which `select` chooses; arguments are those of `select`."""
        flat = self.unit_scores(scores)
        taken = tf.zeros(flat.shape, tf.bool) if kept is None else self.unit_mask(kept)
        allowed = ~taken if among is None else self.unit_mask(among) & ~taken
        return Candidates(flat, allowed, self.first(flat, allowed, taken, scores.shape))

    def select(self, scores, count, among=None, kept=None):
        """Marks the `count` units of the highest score.

        Args:
            scores: real tensor of the weight's shape.
            count: int or int32 scalar tensor, units to mark.
            among: boolean mask of the weight's shape; only its units may be chosen.
            kept: boolean mask of units that are kept in any case; they may not be
                chosen again, and what is chosen has to fit beside them.

        Returns:
            A boolean tensor of the weight's shape. Of equal scores the unit of the lower
            index wins.
        """
        scores = tf.convert_to_tensor(scores)
        flat, allowed, first = self.candidates(scores, among, kept)
        return self.expand(top_k_mask(flat, count, allowed, first), scores.shape)

    def keep(self, scores, count, mask):
        """Marks the `count` units of a mask that stay while others grow in place of the rest.

        Args:
            scores: real tensor of the weight's shape.
            count: int or int32 scalar tensor.
            mask: boolean tensor of that shape.
        """
        return self.select(scores, count, among=mask)

    def get_config(self):
        """The arguments of the constructor, for serialisation."""
        return {}

    @classmethod
    def from_config(cls, config):
        """Makes the pattern from what `get_config` returned."""
        return cls(**config)

    def __eq__(self, other):
        return type(self) is type(other) and self.get_config() == other.get_config()

    def __hash__(self):
        return hash((type(self), repr(self.get_config())))

    def __repr__(self):
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items() if v is not None)
        return f"{type(self).__name__}({arguments})"
