"""Base class of the callbacks that read masks during training."""

import numbers

import keras

from tf_rigl._base.arguments import ChecksArguments


class Watcher(ChecksArguments, keras.callbacks.Callback):
    """Base class of callbacks that read the masks of a `tf_rigl.SparseModel` at intervals.

    Args:
        argument: str, the name of the subclass's argument for `frequency`, for messages.
        frequency: one of `words`, or an integer, the number of steps between two readings.
        words: tuple of str, the allowed words.

    Raises:
        ValueError: if the frequency is neither one of the words nor an integer of at least 1.
        TypeError: when `fit` begins, if the model is not a `tf_rigl.SparseModel`.
    """

    def __init__(self, argument, frequency, words):
        super().__init__()
        is_integer = isinstance(frequency, numbers.Integral) and not isinstance(frequency, bool)
        if frequency not in words and not (is_integer and frequency >= 1):
            raise ValueError(
                f"Argument `{argument}` must be {', '.join(map(repr, words))} or an integer of at "
                f"least 1, a number of steps. Received: {argument}={frequency!r}"
            )
        self._frequency = frequency
        self._last_step = 0  # The model's step at the last call of `_is_due`.

    def set_model(self, model):
        """Sets the model, which must be a `tf_rigl.SparseModel`."""
        if not hasattr(model, "masked_weights"):
            raise TypeError(
                f"{type(self).__name__} is for a `tf_rigl.SparseModel`. Received: model={model!r}"
            )
        super().set_model(model)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts to count at the model's step, which a backup may have restored by now."""
        self._last_step = self.model.step

    def _is_due(self):
        """Returns True if a multiple of the frequency lies between the last call and now."""
        before, self._last_step = self._last_step, self.model.step
        every = self._frequency
        return not isinstance(every, str) and before // every < self._last_step // every
