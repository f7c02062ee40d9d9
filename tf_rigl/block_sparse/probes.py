"""Probes: what a block-sparse layer tells training of its passes.

The dense gradient of a kernel follows from the inputs of the layer and the gradient of its
product. Training gets these two, and no tensor of the dense kernel's size: see `Factors`.
"""

import contextlib
import threading
from typing import NamedTuple

import tensorflow as tf

from tf_rigl._base import tensors

# One dict per thread, as each replica has its own: id(layer) -> `Listener`.
_local = threading.local()


class Pass(NamedTuple):
    """One pass of a layer: the two factors of its dense gradient.

    Attributes:
        features: tensor, what the layer multiplies by its kernel.
        gradient: tensor, the gradient of the product.
    """

    features: tf.Tensor
    gradient: tf.Tensor


class Listener:
    """Hears the passes of a layer.

    Args:
        layer: the block-sparse layer.
        anchor: function without arguments that returns the tensor by which a tape
            differentiates. Only then does the tape come by.

    Attributes:
        heard: list of (tensor, `Pass`). The gradient of the anchor is computed from the tensor,
            by which the passes of one tape are told from those of another.
        zeros: tensor of shape (inputs, outputs) that is all zero, or None. Passes within a loop
            or an inner `tf.function` cannot be heard outside of it. They are as if the product
            with these zeros were added, so the gradient of the zeros is the dense gradient.
    """

    def __init__(self, layer, anchor, zeros=None):
        self.layer = layer
        self.anchor = anchor
        self.zeros = zeros
        self.heard = []
        self._graph = tensors.present_graph()

    def __call__(self, features, product):
        """Returns the product of a pass, and hears the pass when its gradient is computed."""
        if self.zeros is not None and tensors.present_graph() is not self._graph:
            return self._with_zeros(features, product)

        @tf.custom_gradient
        def same(product, anchor):
            def listen(gradient):
                mark = tf.zeros_like(anchor)
                self.heard.append((mark, Pass(features, gradient)))
                return gradient, mark

            return tf.identity(product), listen

        return same(product, self.anchor())

    def _with_zeros(self, features, product):
        @tf.custom_gradient
        def same(features, product, zeros):
            def gradient(dy):
                whole = self.layer.gradient_strip(features, dy)
                shape = self.layer.geometry.inputs, self.layer.geometry.outputs
                whole = tf.cast(whole[: shape[0], : shape[1]], zeros.dtype)
                return tf.zeros_like(features), dy, whole

            return tf.identity(product), gradient

        return same(features, product, self.zeros)


@contextlib.contextmanager
def shown(listener):
    """Makes the layer of a listener call it with each pass, within this context."""
    there, key = vars(_local).setdefault("listeners", {}), id(listener.layer)
    before, there[key] = there.get(key), listener
    try:
        yield
    finally:
        there[key] = before


def of(layer):
    """Returns the `Listener` of a layer, or None outside of `shown`."""
    return vars(_local).get("listeners", {}).get(id(layer))
