"""What callbacks that look at masks share: which models they take, and when they look."""

import numbers

import keras


class Watcher(keras.callbacks.Callback):
    """Base class of callbacks that look at the masks of a `tf_rigl.SparseModel` now and then.

    Args:
        argument: str, how the subclass names its frequency, for messages.
        frequency: a word, or an integer: every so many steps.
        words: tuple of str, the words there are.

    Raises:
        ValueError: if the frequency is none of these.
        TypeError: if the model, when `fit` begins, is not a `tf_rigl.SparseModel`.
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
        self._looked = 0  # The step up to which is known what was due.

    def set_model(self, model):
        """Takes the model that `fit` trains."""
        if not hasattr(model, "masked_weights"):
            raise TypeError(
                f"{type(self).__name__} is for a `tf_rigl.SparseModel`. Received: model={model!r}"
            )
        super().set_model(model)

    def on_epoch_begin(self, epoch, logs=None):
        """Begins to count: other callbacks may have restored the model before this."""
        self._looked = self.model.step

    def _is_due(self):
        """Whether a multiple of the frequency, in steps, has come since this was last asked."""
        before, self._looked = self._looked, self.model.step
        every = self._frequency
        return not isinstance(every, str) and before // every < self._looked // every
