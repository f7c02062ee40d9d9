"""Static sparse training: the baseline that never moves a connection."""

import keras

from tf_rigl.methods.base import Method


@keras.saving.register_keras_serializable(package="tf_rigl")
class Static(Method):
    """A random mask, never changed.

    Example:

    >>> Static()
    Static()

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 4, "Static".
    """
