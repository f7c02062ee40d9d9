"""A model that computes at a random point of a curve between two others."""

import inspect

import keras
import numpy as np
import tensorflow as tf


class Curve(keras.Model):
    """A quadratic Bezier curve between two models; its weights are those of the middle point.

    Each call draws a position, and computes with the weights there.

    Args:
        first, second: `keras.Model`s of one architecture, the ends.
        masks: dict of id of a trainable weight of `first` to a boolean array; elsewhere the
            middle point is zero.
    """

    def __init__(self, first, second, masks):
        super().__init__(name="curve", dtype="float32")  # The inner model casts by itself.
        weights = first.trainable_weights
        # Keras does not look into a function: only the middle point is trained.
        self._model, self._seeds = lambda: first, keras.random.SeedGenerator()
        models = first, second
        self._ends = [_constants(model.trainable_variables) for model in models]
        self._still = [_constants(model.non_trainable_variables) for model in models]
        self._allowed = [masks.get(id(weight)) for weight in weights]
        self._middle = []
        for number, (one, other) in enumerate(zip(*self._ends, strict=True)):
            self._middle.append(
                self.add_weight(
                    shape=one.shape,
                    dtype=one.dtype.name,
                    name=f"middle_{number}",
                    initializer=_Constant((one + other) / 2),
                )
            )

    def middle(self) -> list:
        """Returns the weights of the middle point, as arrays."""
        return [keras.ops.convert_to_numpy(value) for value in self._masked()]

    def _masked(self):
        return [
            tf.convert_to_tensor(weight.value)
            if mask is None
            else tf.convert_to_tensor(weight.value) * tf.cast(mask, weight.dtype)
            for weight, mask in zip(self._middle, self._allowed, strict=True)
        ]

    def call(self, inputs, training=False):
        t = keras.random.uniform((), seed=self._seeds)
        weights = [
            tf.cast((1 - t) ** 2, one.dtype) * one
            + tf.cast(2 * t * (1 - t), one.dtype) * middle
            + tf.cast(t**2, one.dtype) * other
            for one, other, middle in zip(*self._ends, self._masked(), strict=True)
        ]
        model = self._model()
        takes_phase = "training" in inspect.signature(model.call).parameters
        phase = {"training": training} if takes_phase else {}
        still, is_number = model.non_trainable_variables, keras.backend.is_float_dtype
        values = [
            tf.cast(1 - t, one.dtype) * one + tf.cast(t, one.dtype) * other
            if is_number(variable.dtype)
            else tf.convert_to_tensor(variable.value)
            for variable, one, other in zip(still, *self._still, strict=True)
        ]
        outputs, changed, losses = model.stateless_call(
            weights, values, inputs, **phase, return_losses=True
        )
        for variable, value in zip(still, changed, strict=True):
            if not is_number(variable.dtype):  # The state of a random generator.
                variable.assign(value)
        for loss in losses:
            self.add_loss(loss)
        return outputs


def _constants(variables):
    return [tf.constant(keras.ops.convert_to_numpy(each)) for each in variables]


class _Constant(keras.initializers.Initializer):
    """Begins at an array."""

    def __init__(self, value):
        self._value = np.asarray(value)

    def __call__(self, shape, dtype=None):
        return tf.constant(self._value, dtype)
