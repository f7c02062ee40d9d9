"""Showing the call signature of what is wrapped."""

import inspect


def show_call_of(wrapper, wrapped):
    """Makes an instance's `call` pass everything on to `wrapped`, with its signature.

    Keras reads off the signature of `call` which tensors, masks and flags such as
    `training` a layer takes. To be used in `__new__`, before Keras looks.

    Args:
        wrapper: the layer under construction.
        wrapped: the `keras.layers.Layer` that it wraps.
    """

    def call(*args, **kwargs):
        return wrapped(*args, **kwargs)

    call.__signature__ = inspect.signature(wrapped.call)
    object.__setattr__(wrapper, "call", call)
