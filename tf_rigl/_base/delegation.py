"""Wrappers that show Keras the call signature of the wrapped layer."""

import inspect


def show_call_of(wrapper, wrapped):
    """Makes the `call` of `wrapper` call `wrapped`, and gives it the signature of `wrapped.call`.

    Keras finds out by that signature which tensors, masks and flags, such as `training`, a
    layer takes. Use this in `__new__`, before Keras reads the signature.

    Args:
        wrapper: `keras.layers.Layer` under construction.
        wrapped: `keras.layers.Layer`, the layer that it wraps.
    """

    def call(*args, **kwargs):
        return wrapped(*args, **kwargs)

    call.__signature__ = inspect.signature(wrapped.call)
    object.__setattr__(wrapper, "call", call)
