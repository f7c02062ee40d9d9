"""The product of activations with a block-sparse matrix, and its gradient."""

import tensorflow as tf


def product(x, values, places, geometry):
    """Multiplies by a block-sparse matrix: each column of blocks gathers the inputs it has.

    Args:
        x: float tensor of shape (batch, inputs).
        values, places: see `Geometry`.
        geometry: `Geometry`.

    Returns:
        A tensor of shape (batch, outputs).
    """
    across, active, rows, cols = geometry.values_shape
    beyond = geometry.down * rows - geometry.inputs
    batch = tf.shape(x)[0]

    # Features first: a block of inputs then lies in one piece, and so does what a column
    # of blocks gathers.
    @tf.custom_gradient
    def multiply(x, values):
        matrices = tf.reshape(values, [across, active * rows, cols])
        features = tf.transpose(x)
        if beyond:
            features = tf.pad(features, [[0, beyond], [0, 0]])
        features = tf.reshape(features, [geometry.down, rows, batch])
        gathered = tf.reshape(tf.gather(features, places), [across, active * rows, batch])
        y = tf.reshape(tf.matmul(matrices, gathered, transpose_a=True), [across * cols, batch])

        def gradient(dy):
            dy = tf.transpose(dy)
            if across * cols > geometry.outputs:
                dy = tf.pad(dy, [[0, across * cols - geometry.outputs], [0, 0]])
            dy = tf.reshape(dy, [across, cols, batch])
            dvalues = tf.matmul(gathered, dy, transpose_b=True)
            parts = tf.reshape(tf.matmul(matrices, dy), [across * active, rows, batch])
            # Every block gives its part to the inputs that it took.
            dx = tf.math.unsorted_segment_sum(parts, tf.reshape(places, [-1]), geometry.down)
            dx = tf.reshape(dx, [geometry.down * rows, batch])[: geometry.inputs]
            return tf.transpose(dx), tf.reshape(dvalues, geometry.values_shape)

        return tf.transpose(y[: geometry.outputs]), gradient

    return multiply(x, values)


def probe(x, zeros):
    """Zeros of the product's shape, by which the gradient of the whole dense matrix is seen.

    Args:
        x: float tensor of shape (batch, inputs).
        zeros: float tensor of shape (inputs, outputs), all zero.

    Returns:
        What `x @ zeros` is, without computing it: the gradient with respect to `zeros`
        is that of a dense matrix in the place of the block-sparse one.
    """

    @tf.custom_gradient
    def multiply(x, zeros):
        def gradient(dy):
            return tf.zeros_like(x), tf.matmul(x, dy, transpose_a=True)

        return tf.zeros([tf.shape(x)[0], zeros.shape[1]], x.dtype), gradient

    return multiply(x, zeros)
