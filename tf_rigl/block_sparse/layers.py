"""Layers whose variables are the blocks of a kernel that are there, and nothing dense."""

import math

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import keras_internals
from tf_rigl._base.arguments import check_integer, check_number
from tf_rigl.block_sparse import probes
from tf_rigl.block_sparse.geometry import Geometry
from tf_rigl.block_sparse.product import probe, product
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.patterns.layout import Layout
from tf_rigl.weights import maskable

# Activations that do not mind the order of axes.
_ELEMENTWISE = {
    *(
        getattr(keras.activations, name)
        for name in ("elu", "gelu", "leaky_relu", "linear", "relu", "relu6", "selu", "sigmoid")
        + ("silu", "softplus", "tanh")
    ),
}


class BlockSparseLayer:
    """What block-sparse layers share; it comes before the Keras class of the layer.

    The kernel, seen as a matrix of inputs by outputs, has the same number of blocks in each
    column of blocks. They are drawn at random when the layer is built; a
    `tf_rigl.SparseModel` moves them.
    """

    def __init__(self, *args, block_size=32, density=0.1, seed=0, **kwargs):
        super().__init__(*args, **kwargs)
        pair = block_size if isinstance(block_size, (tuple, list)) else (block_size, block_size)
        if len(pair) != 2:
            raise ValueError(
                "Argument `block_size` must be an integer or two of them, the inputs and the "
                f"outputs of a block. Received: block_size={block_size!r}"
            )
        self.block_size = tuple(check_integer("block_size", n, 1) for n in pair)
        self.density = check_number("density", density, above=0, at_most=1)
        self.seed = check_integer("seed", seed, 0)
        if getattr(self, "kernel_constraint", None) is not None:
            raise ValueError(
                f"{type(self).__name__} cannot have a `kernel_constraint`: it has no whole kernel."
            )

    def add_weight(self, *args, **kwargs):
        if kwargs.get("name") != "kernel":
            return super().add_weight(*args, **kwargs)
        self.kernel_shape = tuple(kwargs["shape"])
        self._check()
        _, inputs, outputs = self._layout.size
        rows, cols = self.block_size
        down = -(-inputs // rows)
        active = min(down, max(1, round(self.density * down)))
        self.geometry = Geometry(inputs, outputs, rows, cols, active)
        rng = np.random.default_rng(self.seed)
        order = np.argsort(rng.random((self.geometry.across, down)), axis=1)
        places = np.sort(order[:, :active], axis=1).astype("int32")
        self.places = super().add_weight(
            shape=places.shape,
            dtype="int32",
            initializer=lambda shape, dtype: keras.ops.convert_to_tensor(places, dtype),
            trainable=False,
            name="places",
        )

        def draw(shape, dtype):
            dense = tf.cast(kwargs["initializer"](self.kernel_shape, dtype=dtype), dtype)
            return self.geometry.pack(self.as_matrix(dense), places)

        values = {"shape": self.geometry.values_shape, "initializer": draw, "name": "values"}
        self.values = super().add_weight(*args, **{**kwargs, **values})
        return self.values

    @property
    def _layout(self):
        return Layout(self.kernel_shape, maskable.axes(self, self.kernel_shape))

    @property
    def shape(self):
        """The shape of the dense kernel."""
        return self.kernel_shape

    @property
    def kernel(self):
        """The dense kernel, a tensor that is made anew on each call."""
        return self.as_kernel(
            self.geometry.unpack(tf.convert_to_tensor(self.values), self.places.value)
        )

    def as_matrix(self, kernel):
        """A tensor of the kernel's shape as a matrix of inputs by outputs."""
        return self._layout.matrices(kernel)[0]

    def as_kernel(self, matrix):
        """The inverse of `as_matrix`."""
        return self._layout.restore(matrix[None])

    def sparse_weight(self, path) -> BlockSparseWeight:
        """The kernel as a sparse weight; the layer is built."""
        return BlockSparseWeight(path, self)

    def stored(self, attribute):
        """The variable that stores an attribute and the shape that it stands for, or None."""
        return (self.values, self.kernel_shape) if attribute == "kernel" else None

    def _check(self):
        """Raises if the kernel is not one matrix."""

    def enable_lora(self, *args, **kwargs):
        """Not possible: `call` knows nothing of it."""
        del args, kwargs
        raise ValueError(
            f"Layer {self.name!r} stores its kernel as blocks and cannot have LoRA: use it on the "
            "model that `tf_rigl.strip` makes."
        )

    def get_prunable_weights(self):
        """None: its blocks are moved, not masked."""
        return []

    def _multiply(self, inputs, summed, made):
        """The product with the kernel, with bias and activation.

        Args:
            inputs: tensor.
            summed: int, how many of its last axes are the kernel's inputs.
            made: tuple of int, the last axes of the result.
        """
        rank = len(inputs.shape) - summed
        lead = [n or tf.shape(inputs)[axis] for axis, n in enumerate(inputs.shape[:rank])]
        # One layer's transpose at the end and the next one's at the beginning cancel out in
        # TensorFlow's optimizers: bias and activation come before it where they can.
        x = tf.transpose(inputs, _rolled(len(inputs.shape), summed))
        x = tf.reshape(x, [self.geometry.inputs, -1])
        values = tf.convert_to_tensor(self.values)
        y = product(x, values, tf.convert_to_tensor(self.places), self.geometry)
        zeros = probes.of(self)
        if zeros is not None:
            y += probe(x, tf.cast(zeros, x.dtype))
        y = tf.reshape(y, [*made, *lead])
        rank += len(made)
        if self.bias is not None:
            bias = tf.convert_to_tensor(self.bias)
            bias = tf.reshape(bias, [1] * (rank - len(bias.shape)) + list(bias.shape))
            y += tf.transpose(bias, _rolled(rank, len(made)))
        back = _rolled(rank, rank - len(made))
        if self.activation in _ELEMENTWISE:
            return tf.transpose(self.activation(y), back)
        y = tf.transpose(y, back)
        return self.activation(y)

    def save_own_variables(self, store):
        """Stores values, bias and places, as they are."""
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        """Restores what `save_own_variables` stored, after a look at the places of the blocks."""
        variables = keras_internals.own_variables(self)
        key = str(next(n for n, variable in enumerate(variables) if variable is self.places))
        if key in store.keys():  # noqa: SIM118, not a dict. Without, Keras says what is missing.
            places = np.asarray(store[key])
            ascending = np.all(np.diff(places) > 0)
            if not ascending or places.min() < 0 or places.max() >= self.geometry.down:
                raise ValueError(
                    f"The file holds places of blocks that layer {self.name!r} cannot have."
                )
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        own = {"block_size": self.block_size, "density": self.density, "seed": self.seed}
        return {**super().get_config(), **own}

    def ordinary(self):
        """A layer of the Keras class, of the same configuration, not built."""
        config = super().get_config()
        return type(self).__mro__[2].from_config(config)


@keras.saving.register_keras_serializable(package="tf_rigl.block_sparse")
class Dense(BlockSparseLayer, keras.layers.Dense):
    """A `keras.layers.Dense` that stores and computes only the blocks that are there.

    Args:
        *args, **kwargs: those of `keras.layers.Dense`. A `kernel_regularizer` gets the values
            that are stored, of shape (columns of blocks, blocks in each, rows, columns).
        block_size: int, or two of them: the inputs and the outputs of a block. Sizes that do
            not divide are padded inside.
        density: float in (0, 1], the fraction of blocks that are there, in each column of
            blocks; at least one is.
        seed: int, for where they are at first.

    Example:

    >>> layer = Dense(2048, block_size=64, density=0.125, activation="relu")
    >>> layer(np.ones((1, 1024), "float32")).shape
    TensorShape([1, 2048])
    >>> tuple(layer.values.shape)
    (32, 2, 64, 64)

    Reference:

    - [Dynamic Sparse Training with Structured Sparsity](https://arxiv.org/abs/2305.02299),
      for the constant fan-in.
    """

    def call(self, inputs, training=None):
        del training
        return self._multiply(inputs, 1, [self.units])


@keras.saving.register_keras_serializable(package="tf_rigl.block_sparse")
class EinsumDense(BlockSparseLayer, keras.layers.EinsumDense):
    """A `keras.layers.EinsumDense` that projects last axes, stored and computed in blocks.

    The axes that are summed over must be the last ones of the input, and those that come
    from the kernel the last ones of the output: "abc,cd->abd", "...x,xy->...y".

    Args:
        *args, **kwargs: those of `keras.layers.EinsumDense`.
        block_size, density, seed: those of `Dense`.
    """

    def _check(self):
        if not projects_last_axes(self):
            raise ValueError(
                "Argument `equation` must project the last axes of the input to the last axes of "
                f"the output. Received: equation={self.equation!r}"
            )

    def call(self, inputs, training=None):
        del training
        summed, made = maskable.axes(self, self.kernel_shape) or ((-2,), (-1,))
        return self._multiply(inputs, len(summed), [self.kernel_shape[axis] for axis in made])


@keras.saving.register_keras_serializable(package="tf_rigl.block_sparse")
class Conv2D(BlockSparseLayer, keras.layers.Conv2D):
    """A 1x1 `keras.layers.Conv2D` that stores and computes only the blocks that are there.

    Args:
        *args, **kwargs: those of `keras.layers.Conv2D`; the kernel 1x1, without strides or
            groups, channels last.
        block_size, density, seed: those of `Dense`.
    """

    def _check(self):
        if not is_pointwise(self):
            raise ValueError(
                "A block-sparse Conv2D must have `kernel_size=1`, `strides=1`, `groups=1` and "
                f"`data_format='channels_last'`. Received: {self.get_config()}"
            )

    def call(self, inputs):
        return self._multiply(inputs, 1, [self.filters])


def _rolled(rank, last):
    """The order of axes in which that many of the last ones come first."""
    return [*range(rank - last, rank), *range(rank - last)]


def projects_last_axes(layer) -> bool:
    """Whether an `EinsumDense` is a product of the last axes with one matrix."""
    inputs, kernel, output = maskable.einsum_labels(layer)
    summed = "".join(label for label in kernel if label in inputs and label not in output)
    made = "".join(label for label in kernel if label in output and label not in inputs)
    return (
        len(summed) + len(made) == len(kernel)
        and bool(summed and made)
        and inputs.endswith(summed)
        and output == inputs[: -len(summed)] + made
    )


def is_pointwise(layer) -> bool:
    """Whether a `Conv2D` is a product of the channels with one matrix."""
    ones = math.prod((*layer.kernel_size, *layer.strides, layer.groups))
    return ones == 1 and layer.data_format == "channels_last"
