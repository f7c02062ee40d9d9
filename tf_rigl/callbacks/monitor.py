"""Checks while training that the masks and the weights under them are what they have to be."""

import numpy as np
import tensorflow as tf

from tf_rigl.callbacks.watcher import Watcher
from tf_rigl.training import loop


class SparsityError(RuntimeError):
    """Masks or weights are not what they have to be; the message names the layer."""


class SparsityMonitor(Watcher):
    """Stops training as soon as it finds masks or weights that cannot be right.

    Of every masked weight it checks that

    - the mask is boolean and of the weight's shape;
    - weights are exactly 0.0 wherever the mask is 0;
    - all weights are finite, and the scores of methods that train these instead;
    - as many units are active as the method has planned: for methods that begin sparse,
      always the same number; for those that prune, never more than before.

    A look costs two passes over the weights. It is taken every `frequency` steps, and at the
    end of every epoch.

    Args:
        frequency: integer, how many steps there are from one look to the next; or "epoch".

    Raises:
        SparsityError: during `fit`, with the step, the weight (its path begins with the
            name of the layer) and what is wrong with it.

    Example:

    >>> monitor = tf_rigl.callbacks.SparsityMonitor(frequency=100)
    >>> model.fit(data, epochs=90, callbacks=[monitor])
    """

    def __init__(self, frequency=100):
        super().__init__("frequency", frequency, ("epoch",))
        self.frequency = frequency

    def on_train_begin(self, logs=None):
        """Forgets what it has seen of an earlier run."""
        self._counts = None

    def on_train_batch_end(self, batch, logs=None):
        """Looks, if it is time."""
        if self._is_due():
            self._look()

    def on_epoch_end(self, epoch, logs=None):
        """Looks."""
        self._look()

    def _look(self):
        model = self.model
        plan = loop.of(model).plan
        if plan is None:  # No step has been taken yet.
            return
        items = model.masked_weights
        wrong, counts = [], []
        for number, item in enumerate(items):
            count, faults = _examine(item)
            if count is not None:
                faults += self._miscounts(number, count, plan.active[number])
            counts.append(count)
            wrong += [f"{item.path!r}: {fault}" for fault in faults]
        if wrong:
            raise SparsityError(f"At step {model.step}: {'; '.join(wrong)}.")
        self._counts = counts

    def _miscounts(self, number, count, planned):
        """What is wrong with the number of active units of a weight."""
        if count != planned:
            yield f"{count} units are active, the method has planned {planned}"
        elif self._counts is not None and self.model.method.begins_dense:
            before = self._counts[number]
            if count > before:
                yield f"{count} units are active, {before} were before"


def _examine(item):
    """How many units of a weight are active, and what is wrong with it.

    Returns:
        An int, or None where the mask is no mask; and a list of str.
    """
    mask = tf.convert_to_tensor(item.mask)
    if mask.dtype != tf.bool:
        return None, [f"the mask is not boolean but {mask.dtype.name}"]
    if tuple(mask.shape) != item.shape:
        return None, [f"the mask has the shape {tuple(mask.shape)}, the weight {item.shape}"]
    weight = tf.convert_to_tensor(item.weight.value)
    odd = tf.math.count_nonzero(~tf.math.is_finite(weight))
    found = tf.stack([item.stray(), odd, tf.cast(item.pattern.active(mask), tf.int64)])
    stray, odd, count = found.numpy().tolist()
    faults = []
    if odd:
        faults.append(f"{odd} of {weight.shape.num_elements()} weights are not finite")
    if stray:
        faults.append(f"{stray} weights are not zero where the mask is 0")
    scores = item.state.get("scores")
    if scores is not None and not np.isfinite(scores.numpy()).all():
        faults.append("the scores are not all finite")
    return count, faults
