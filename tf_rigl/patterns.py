"""Which entries of a weight live and die together.

A pattern turns scores of a weight's shape and a count into a mask. Methods and the
training step know nothing else of it.
"""

import math

import keras
import tensorflow as tf

from tf_rigl._arguments import unknown_name
from tf_rigl.selection import top_k_mask


class Pattern:
    """Base class: what a pattern has to say.

    A *unit* is the smallest thing that is kept or dropped as a whole: one entry, or
    one block. Counts are in units.
    """

    def units(self, shape) -> int:
        """How many units a weight of this shape has."""
        raise NotImplementedError

    def active(self, mask):
        """How many units of a boolean mask are kept, as an int32 scalar tensor."""
        raise NotImplementedError

    def unit_scores(self, scores):
        """The score of each unit, as a flat tensor."""
        raise NotImplementedError

    def unit_mask(self, mask):
        """Which units of a mask are kept, as a flat boolean tensor."""
        raise NotImplementedError

    def select(self, scores, count, among=None, kept=None):
        """Marks the `count` units of the highest score.

        Args:
            scores: real tensor of the weight's shape.
            count: int or int32 scalar tensor, units to mark.
            among: boolean mask of the weight's shape; only its units may be chosen.
            kept: boolean mask of units that are kept in any case; they may not be
                chosen again, and what is chosen has to fit beside them.

        Returns:
            A boolean tensor of the weight's shape.
        """
        raise NotImplementedError

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
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


@keras.saving.register_keras_serializable(package="tf_rigl")
class Unstructured(Pattern):
    """Every entry on its own.

    Example:

    >>> Unstructured().units((3, 3, 16, 32))
    4608
    """

    def units(self, shape) -> int:
        """The number of entries."""
        return math.prod(shape)

    def active(self, mask):
        """The number of entries set."""
        return tf.math.count_nonzero(mask, dtype=tf.int32)

    def unit_scores(self, scores):
        """The scores themselves."""
        return tf.reshape(scores, [-1])

    def unit_mask(self, mask):
        """The mask itself."""
        return tf.reshape(mask, [-1])

    def select(self, scores, count, among=None, kept=None):
        """The `count` entries of the highest score; see `Pattern.select`."""
        if kept is not None:
            among = ~kept if among is None else among & ~kept
        return top_k_mask(scores, count, among)


NAMES = {"unstructured": Unstructured}


def get(identifier) -> Pattern:
    """Looks up a pattern.

    Args:
        identifier: "unstructured", or a `Pattern`.

    Returns:
        The pattern.

    Raises:
        ValueError: if the name is unknown; the message offers the closest ones.

    Example:

    >>> get("unstructured")
    Unstructured()
    """
    if isinstance(identifier, Pattern):
        return identifier
    if isinstance(identifier, str) and identifier in NAMES:
        return NAMES[identifier]()
    raise unknown_name("pattern", identifier, NAMES)
