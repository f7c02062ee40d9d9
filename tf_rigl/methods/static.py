"""Static sparse training: the baseline whose masks never change."""

import keras

from tf_rigl.methods.base import Method


@keras.saving.register_keras_serializable(package="tf_rigl")
class Static(Method):
    """Draws a random mask and never changes it.

    Example:

    >>> Static().plan(100, active=[1000]) is None
    True

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 4, "Static".
    """
