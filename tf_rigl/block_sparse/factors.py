"""`Factors`: the dense gradient of a block-sparse kernel, of which only parts are computed."""

import tensorflow as tf

from tf_rigl._base import tensors


class Factors(tensors.InFactors):
    """The dense gradient as the sum of products of inputs with gradients, one for each pass.

    Args:
        strips: `tf_rigl.block_sparse.strips.Strips` of the kernel.
        passes: list of `Pass`.
        whole: tensor of shape (inputs, outputs) to add, or None.
        scale: scalar tensor to divide by, or None.
        packed: tensor of the shape of the stored values to add in their places, or None.
    """

    def __init__(self, strips, passes, whole=None, scale=None, packed=None):
        self.strips = strips
        self.passes = passes
        self.whole = whole
        self.scale = scale
        self.packed = packed

    def _with(self, **changes):
        return type(self)(**{**vars(self), **changes})

    def over_replicas(self):
        """Returns the sum over replicas: each gets the factors of all."""
        context = tf.distribute.get_replica_context()
        axis = self.strips.layer.batch_axis

        def gathered(tensor):
            shape = tensor.shape.as_list()
            shape[axis] = None
            # Not every way to gather takes bfloat16, whose numbers float32 holds exactly.
            half = tensor.dtype == tf.bfloat16
            found = context.all_gather(tf.cast(tensor, tf.float32) if half else tensor, axis)
            return tf.ensure_shape(tf.cast(found, tensor.dtype), shape)

        passes = [type(each)(*map(gathered, each)) for each in self.passes]
        whole = self.whole
        if whole is not None:
            whole = context.all_reduce(tf.distribute.ReduceOp.SUM, whole)
        return self._with(passes=passes, whole=whole)

    def divided(self, scale):
        """Returns the gradient divided by a loss scale."""
        return self._with(scale=scale)

    def plus(self, packed):
        """Returns the sum with a gradient of the stored values."""
        return self._with(packed=packed)

    def strip(self, first, part):
        """Returns the gradient of some columns of blocks.

        Args:
            first: int or int32 scalar tensor, the first column of blocks.
            part: `Geometry` of the strip.

        Returns:
            A tensor of shape (part.inputs, part.outputs), of the dtype of the values.
        """
        layer, dtype = self.strips.layer, self.strips.layer.values.dtype
        parts = [tf.zeros([part.inputs, part.outputs], dtype)] if not self.passes else []
        for features, gradient in self.passes:
            found = layer.gradient_strip(features, gradient, first, part.across)
            parts.append(tf.cast(found[:, : part.outputs], dtype))
        if self.whole is not None:
            parts.append(self.strips.columns(self.whole, first, part))
        total = parts[0] if len(parts) == 1 else tf.add_n(parts)
        if self.scale is not None:
            total /= tf.cast(self.scale, dtype)
        if self.packed is not None:
            total += self.strips.unpacked(self.packed, first, part)
        return total

    def dense(self):
        """Returns the whole gradient, in the shape of the kernel."""
        strips, inputs = self.strips, self.strips.geometry.inputs

        def columns(first, part):
            matrix = tf.reshape(
                self._padded(self.strip(first, part), part), [inputs, -1, part.cols]
            )
            return tf.transpose(matrix, [1, 0, 2])

        whole = tf.transpose(strips.map(columns), [1, 0, 2])
        return strips.layer.as_kernel(tf.reshape(whole, [inputs, -1])[:, : strips.geometry.outputs])

    def _padded(self, matrix, part):
        beyond = part.across * part.cols - matrix.shape[1]
        return tf.pad(matrix, [[0, 0], [0, beyond]]) if beyond else matrix

    def is_finite(self):
        """Returns a boolean scalar tensor, True if all entries are finite."""
        strips = self.strips

        def finite(first, part):
            good = tf.reduce_all(tf.math.is_finite(self.strip(first, part)))
            return tf.fill([part.across], good)

        return tf.reduce_all(strips.map(finite))
