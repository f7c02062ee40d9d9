"""Probes: zero matrices whose gradient is the dense gradient of a block-sparse layer.

The layer adds the product with the zeros to its own product.
"""

import contextlib
import threading

# One dict per thread, as each replica has its own: id(layer) -> zeros of shape (inputs, outputs).
_local = threading.local()


@contextlib.contextmanager
def shown(layer, zeros):
    """Makes the layer add the product with `zeros` to its own product, within this context.

    Args:
        layer: the layer.
        zeros: tensor, or a function that returns it anew at each call of the layer.
    """
    there = vars(_local).setdefault("zeros", {})
    before, there[id(layer)] = there.get(id(layer)), zeros
    try:
        yield
    finally:
        there[id(layer)] = before


def of(layer):
    """Returns the zeros of a layer's probe, or None outside of `shown`."""
    zeros = vars(_local).get("zeros", {}).get(id(layer))
    return zeros() if callable(zeros) else zeros
