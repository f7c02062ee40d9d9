"""What a training step does at its place in the run: an ordinary step, or an update."""

import contextlib
import threading
from typing import NamedTuple

import tensorflow as tf

_local = threading.local()  # Each replica of a strategy has a thread of its own.


class Moment(NamedTuple):
    """What a step does beside training on its batch. By default nothing: it is ordinary.

    Attributes:
        counts: int32 tensor of shape (masked weights, 2 or more), the result of `Method.plan`:
            units to keep and to grow, if masks change at this step; or None.
        number: int32 scalar tensor, the number of the step, for the random numbers of an update.
        past: float32 scalar tensor if the method observes the dense gradient at this step, see
            `Method.observation`; or None.
    """

    counts: tf.Tensor | None = None
    number: tf.Tensor | None = None
    past: tf.Tensor | None = None

    @property
    def looks(self) -> bool:
        """True if the step needs the dense gradients of the sparse weights."""
        return self.counts is not None or self.past is not None


ORDINARY = Moment()


@contextlib.contextmanager
def set_now(model, moment):
    """Sets, within this context and thread, what the `train_step` of a model does."""
    moments = vars(_local).setdefault("moments", [])
    moments.append((model, moment))
    try:
        yield
    finally:
        moments.pop()


def now(model) -> Moment:
    """Returns what the `train_step` of a model does now; it is ordinary unless `set_now` says."""
    moments = vars(_local).get("moments", [])
    return next((moment for owner, moment in reversed(moments) if owner is model), ORDINARY)
