"""Checks of masks and masked weights during training."""

import numpy as np
import tensorflow as tf

from tf_rigl.callbacks.watcher import Watcher
from tf_rigl.training import loop


class SparsityError(RuntimeError):
    """An error in masks or weights; the message names the weight."""


class SparsityMonitor(Watcher):
    """Stops training as soon as a mask or a weight is wrong.

    For each masked weight it checks that

    - the mask is boolean and has the weight's shape (of weights that are stored as blocks: the
      places of the blocks ascend within the weight);
    - weights are exactly 0.0 wherever the mask is 0;
    - all weights are finite, and so are the scores, if the method trains scores;
    - the number of active units is the one that the method has planned: constant for methods
      that begin sparse, never more than before for methods that prune.

    It checks every `frequency` steps, and at the end of each epoch. A check costs two passes
    over the weights.

    Args:
        frequency: integer, the number of steps between two checks; or "epoch".

    Raises:
        SparsityError: during `fit`, with the step, the path of the weight (it begins with the
            name of the layer) and the error.

    Example:

    >>> monitor = tf_rigl.callbacks.SparsityMonitor(frequency=100)
    >>> history = sparse.fit(x, y, batch_size=1, epochs=4, callbacks=[monitor], verbose=0)
    """

    def __init__(self, frequency=100):
        super().__init__("frequency", frequency, ("epoch",))
        self.frequency = frequency

    def on_train_begin(self, logs=None):
        """Forgets the counts of an earlier run."""
        self._counts = None

    def on_train_batch_end(self, batch, logs=None):
        """Checks the masks if a check is due."""
        if self._is_due():
            self._check()

    def on_epoch_end(self, epoch, logs=None):
        """Checks the masks."""
        self._check()

    def _check(self):
        """Raises a `SparsityError` that lists everything that is wrong."""
        model = self.model
        plan = loop.of(model).plan
        if plan is None:  # No step has run yet.
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
        """Yields a message if the number of active units of a weight is wrong."""
        method = self.model.method
        if count != planned:
            yield f"{count} units are active, the method has planned {planned}"
        elif self._counts is not None and method.begins_dense and method.keeps_counts:
            before = self._counts[number]
            if count > before:
                yield f"{count} units are active, more than the {before} before"


def _examine(item):
    """Counts the active units of a weight, and checks its mask and values.

    Returns:
        The number of active units, or None if the mask is invalid; and a list of str, the
        errors.
    """
    if fault := item.fault():
        return None, [fault]
    weight = tf.convert_to_tensor(item.weight.value)
    odd = tf.math.count_nonzero(~tf.math.is_finite(weight))
    stray, odd = tf.stack([item.stray(), odd]).numpy().tolist()
    count = item.active()
    faults = []
    if odd:
        faults.append(f"{odd} of {weight.shape.num_elements()} weights are not finite")
    if stray:
        faults.append(f"{stray} weights are not zero where the mask is 0")
    for name in ("scores", "dense"):  # What is trained in the place of the weight.
        state = item.state.get(name)
        if state is not None and not np.isfinite(state.numpy()).all():
            kind = {"scores": "scores", "dense": "dense weights"}[name]
            faults.append(f"the {kind} are not all finite")
    return count, faults
