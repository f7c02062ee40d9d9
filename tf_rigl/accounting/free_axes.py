"""Sizes for the axes that a model leaves free, where nobody has given an `input_shape`."""

import keras

IMAGE = 224  # Height and width of images, as in the papers on ImageNet.
OTHER = 128  # Timesteps, tokens, and all others.


def filled(arguments):
    """Gives free axes of a model's inputs a size: 224 in images, else 128.

    An image is an input of four axes, the batch axis included.

    Args:
        arguments: positional arguments, keyword arguments and the batch size, as
            `tf_rigl.accounting.calls.prepare` returns them.

    Returns:
        The same with all sizes, and a list of the shapes of all inputs, without the batch axis;
        or None in place of both if no axis is free.
    """
    args, kwargs, batch = arguments
    tensors = keras.tree.flatten((args, kwargs))
    if not any(None in tensor.shape for tensor in tensors):
        return None, None
    new = [
        keras.KerasTensor(_sizes(tensor.shape), tensor.dtype, sparse=tensor.sparse)
        for tensor in tensors
    ]
    args, kwargs = keras.tree.pack_sequence_as((args, kwargs), new)
    return (args, kwargs, batch), [tuple(tensor.shape[1:]) for tensor in new]


def _sizes(shape):
    free = IMAGE if len(shape) == 4 else OTHER
    return tuple(free if size is None else size for size in shape)
