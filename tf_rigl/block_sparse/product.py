"""The product of activations with a block-sparse matrix, and its gradient.

The features axis comes first and the batch axis last. So a block of inputs is contiguous in
memory, and so are the inputs that a column of blocks gathers.
"""

import tensorflow as tf

from tf_rigl._base.keras_internals import in_xla


def product(features, values, places, geometry):
    """Multiplies by a block-sparse matrix: each column of blocks gathers the inputs it needs.

    Args:
        features: float tensor of shape (inputs, batch).
        values, places: see `Geometry`.
        geometry: `Geometry`.

    Returns:
        A tensor of shape (outputs, batch).
    """
    across, active, rows, cols = geometry.values_shape
    batch = tf.shape(features)[1]

    @tf.custom_gradient
    def multiply(features, values):
        matrices = tf.reshape(values, [across, active * rows, cols])
        padded = _padded(features, geometry.down * rows)
        gathered = tf.gather(tf.reshape(padded, [geometry.down, rows, batch]), places)
        gathered = tf.reshape(gathered, [across, active * rows, batch])
        if in_xla():  # XLA multiplies by a matrix that is already transposed a third faster.
            turned = tf.reshape(tf.transpose(values, [0, 3, 1, 2]), [across, cols, active * rows])
            y = tf.matmul(turned, gathered)
        else:
            y = tf.matmul(matrices, gathered, transpose_a=True)
        y = tf.reshape(y, [across * cols, batch])

        def gradient(dy):
            dy = tf.reshape(_padded(dy, across * cols), [across, cols, batch])
            dvalues = tf.matmul(gathered, dy, transpose_b=True)
            parts = tf.reshape(tf.matmul(matrices, dy), [across * active, rows, batch])
            dx = tf.reshape(_sums(parts, places, geometry.down), [geometry.down * rows, batch])
            return dx[: geometry.inputs], tf.reshape(dvalues, geometry.values_shape)

        return y[: geometry.outputs], gradient

    return multiply(features, values)


def gradient_strip(features, dy, geometry, first=0, across=None):
    """Returns the gradient of some columns of blocks of a dense matrix.

    Args:
        features: float tensor of shape (inputs, batch).
        dy: float tensor of shape (outputs, batch), the gradient of the product.
        geometry: `Geometry`.
        first: int or int32 scalar tensor, the first column of blocks.
        across: int, how many of them; None for all. They may go beyond the matrix.

    Returns:
        A tensor of shape (inputs, across * cols).
    """
    across = geometry.across if across is None else across
    if across < geometry.across:
        whole = -(-geometry.across // across) * across
        dy = _padded(dy, whole * geometry.cols)
        dy = tf.slice(dy, [first * geometry.cols, 0], [across * geometry.cols, tf.shape(dy)[1]])
    else:
        dy = _padded(dy, across * geometry.cols)
    return tf.matmul(features, dy, transpose_b=True)


def _padded(tensor, size):
    """Pads the first axis of a tensor with zeros up to `size`."""
    beyond = size - tensor.shape[0]
    return tf.pad(tensor, [[0, beyond], [0, 0]]) if beyond else tensor


def _sums(parts, places, down):
    """Sums the gradients that the blocks of each block row give to their inputs.

    Args:
        parts: tensor of shape (across * active, rows, batch), the gradient of each block.
        places: int tensor of shape (across, active).
        down: int, the number of block rows.

    Returns:
        A tensor of shape (down, rows, batch).
    """
    places = tf.reshape(places, [-1])
    if in_xla():
        return tf.math.unsorted_segment_sum(parts, places, down)
    # XLA lacks this operation; without XLA it takes half the time.
    order = tf.argsort(places, stable=True)
    return tf.sparse.segment_sum(parts, order, tf.gather(places, order), num_segments=down)
