"""Layers that store only the active blocks of their kernel, and no dense kernel."""

import math
import weakref

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import keras_internals, notices
from tf_rigl._base.arguments import check_integer, check_layer_arguments, check_number
from tf_rigl._base.workers import resolve_seed
from tf_rigl.block_sparse import drawing, probes
from tf_rigl.block_sparse.geometry import Geometry
from tf_rigl.block_sparse.product import gradient_strip, product
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.patterns.layout import Layout
from tf_rigl.weights import maskable
from tf_rigl.weights.sparse_weight import StoresSparse

# Activations that work entry by entry: the order of axes does not matter to them.
_ELEMENTWISE = {
    *(
        getattr(keras.activations, name)
        for name in ("elu", "gelu", "leaky_relu", "linear", "relu", "relu6", "selu", "sigmoid")
        + ("silu", "softplus", "tanh")
    ),
}


class BlockSparseLayer(StoresSparse):
    """Mixin of all block-sparse layers; it precedes the Keras class of the layer.

    The kernel, as a matrix of inputs by outputs, has the same number of blocks in each column
    of blocks. The layer draws their places at random when it is built; a
    `tf_rigl.SparseModel` moves the blocks.

    Attributes:
        batch_axis: int, the axis of the batch in what `_heard` gets.
    """

    batch_axis = 1

    def __init__(self, *args, block_size=32, density=0.1, seed=None, **kwargs):
        check_layer_arguments(self, kwargs)
        super().__init__(*args, **kwargs)
        pair = block_size if isinstance(block_size, (tuple, list)) else (block_size, block_size)
        if len(pair) != 2:
            raise ValueError(
                "Argument `block_size` must be an integer or two integers, the inputs and the "
                f"outputs of a block. Received: block_size={block_size!r}"
            )
        self.block_size = tuple(check_integer("block_size", n, 1) for n in pair)
        self.density = check_number("density", density, above=0, at_most=1)
        self.seed = resolve_seed(seed)
        self.trainers = weakref.WeakSet()  # See `SparseWeight`.
        if getattr(self, "kernel_constraint", None) is not None:
            raise ValueError(
                "Argument `kernel_constraint` must be None: the layer stores no whole kernel. "
                f"Received: kernel_constraint={self.kernel_constraint!r}"
            )

    def add_weight(self, *args, **kwargs):
        """Adds a variable; in place of the kernel, `values` and `places` of its blocks."""
        if kwargs.get("name") != "kernel":
            return super().add_weight(*args, **kwargs)
        self.kernel_shape = tuple(kwargs["shape"])
        self._check()
        _, inputs, outputs = self._layout.size
        rows, cols = self.block_size
        rows *= self.taps
        down = -(-inputs // rows)
        active = min(down, max(1, round(self.density * down)))
        if rows > inputs or cols > outputs:
            notices.warn(
                f"Layer {self.name!r} stores more than a dense kernel: its blocks are larger than "
                f"its {inputs} inputs by {outputs} outputs. Pass a smaller `block_size`. "
                f"Received: block_size={self.block_size}"
            )
        self.geometry = Geometry(inputs, outputs, rows, cols, active)
        places = drawing.places(self.geometry, self.seed)
        self.places = super().add_weight(
            shape=places.shape,
            dtype="int32",
            initializer=lambda shape, dtype: keras.ops.convert_to_tensor(places, dtype),
            trainable=False,
            name="places",
        )

        def draw(shape, dtype):
            given = kwargs["initializer"], self.kernel_shape, self.as_matrix, dtype
            return drawing.values(self.geometry, places, *given)

        values = {"shape": self.geometry.values_shape, "initializer": draw, "name": "values"}
        self.values = super().add_weight(*args, **{**kwargs, **values})
        return self.values

    @property
    def _layout(self):
        axes = maskable.axes(self, self.kernel_shape)
        return Layout(self.kernel_shape, axes, joined=bool(self.tap_shape))

    @property
    def tap_shape(self) -> tuple[int, ...]:
        """The sizes of the kernel's spatial axes; a block covers all of them."""
        return ()

    @property
    def taps(self) -> int:
        """How many positions a kernel has for each channel."""
        return math.prod(self.tap_shape)

    @property
    def shape(self):
        """The shape of the dense kernel."""
        return self.kernel_shape

    @property
    def kernel(self):
        """The dense kernel, a tensor that each access computes again."""
        return self.as_kernel(
            self.geometry.unpack(tf.convert_to_tensor(self.values), self.places.value)
        )

    def __dir__(self):
        """Leaves out the dense kernel: Keras computes all that is listed when it saves a model."""
        return [name for name in super().__dir__() if name != "kernel"]

    def as_matrix(self, kernel):
        """Reshapes a tensor of the kernel's shape to a matrix of inputs by outputs."""
        return self._layout.matrices(kernel)[0]

    def as_kernel(self, matrix):
        """Reshapes a matrix to the kernel's shape; the inverse of `as_matrix`."""
        return self._layout.restore(matrix[None])

    def sparse_weight(self, path) -> BlockSparseWeight:
        """Returns the kernel of a built layer as a sparse weight."""
        return BlockSparseWeight(path, self)

    def stored(self, attribute):
        """Returns the variable that stores the kernel, and the kernel's shape; see `maskable`."""
        return (self.values, self.kernel_shape) if attribute == "kernel" else None

    def _check(self):
        """Raises if the layer does not multiply by one matrix."""

    def enable_lora(self, *args, **kwargs):
        """Raises: `call` does not support LoRA."""
        del args, kwargs
        raise ValueError(
            f"Layer {self.name!r} stores its kernel as blocks and cannot have LoRA. Call "
            "`tf_rigl.strip` first, and enable LoRA in the dense model that it returns."
        )

    def get_prunable_weights(self):
        """Returns an empty list: the kernel is not masked, its blocks move."""
        return []

    def _multiply(self, inputs, summed, made):
        """Multiplies by the kernel, then adds the bias and applies the activation.

        Args:
            inputs: tensor.
            summed: int, how many of its last axes are the kernel's inputs.
            made: list of int, the sizes of the last axes of the result.
        """
        if not inputs.dtype.is_floating:  # Layers of Keras take integers too.
            inputs = tf.cast(inputs, self.compute_dtype)
        rank = len(inputs.shape) - summed
        lead = [n or tf.shape(inputs)[axis] for axis, n in enumerate(inputs.shape[:rank])]
        # TensorFlow's optimizers cancel the last transpose of a layer against the first one of
        # the next. So bias and activation come before the last transpose if they can.
        x = tf.transpose(inputs, _rolled(len(inputs.shape), summed))
        x = tf.reshape(x, [self.geometry.inputs, -1])
        values = tf.convert_to_tensor(self.values)
        y = product(x, values, tf.convert_to_tensor(self.places), self.geometry)
        y = self._heard(x, y)
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

    def _heard(self, features, product):
        """Returns the product; training hears of the pass if it looks for the dense gradient."""
        listener = probes.of(self)
        return product if listener is None else listener(features, product)

    def gradient_strip(self, features, gradient, first=0, across=None):
        """Returns the gradient of some columns of blocks, as a matrix.

        Args:
            features, gradient: what `_heard` got, and the gradient of the product.
            first: int or int32 scalar tensor, the first column of blocks.
            across: int, how many of them; None for all. They may go beyond the kernel.

        Returns:
            A tensor of shape (inputs, across * cols).
        """
        return gradient_strip(features, gradient, self.geometry, first, across)

    def save_own_variables(self, store):
        """Stores values, bias and places."""
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        """Restores values, bias and places, and checks the places first.

        Of the file of the dense layer it takes what its blocks hold: their places stay.
        """
        variables = keras_internals.own_variables(self)
        is_dense = len(store.keys()) == len(variables) - 1 and store["0"].shape == self.kernel_shape
        if is_dense and np.issubdtype(store["0"].dtype, np.floating):  # Others are quantized.
            kernel = self.as_matrix(tf.convert_to_tensor(np.asarray(store["0"], self.values.dtype)))
            self.values.assign(self.geometry.pack(kernel, tf.convert_to_tensor(self.places)))
            if self.bias is not None:
                self.bias.assign(store["1"])
            return
        key = str(next(n for n, variable in enumerate(variables) if variable is self.places))
        there = key in store.keys()  # noqa: SIM118, not a dict. Keras reports a missing key.
        if there and (fault := self.geometry.fault(np.asarray(store[key]))):
            raise ValueError(
                f"The file holds invalid places of blocks for layer {self.name!r}: {fault}."
            )
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        own = {"block_size": self.block_size, "density": self.density, "seed": self.seed}
        return {**super().get_config(), **own}

    def ordinary(self):
        """Returns a layer of the Keras class with the same configuration, not built."""
        config = super().get_config()
        return _keras_class(type(self)).from_config(config)


@keras.saving.register_keras_serializable(package="tf_rigl.block_sparse")
class Dense(BlockSparseLayer, keras.layers.Dense):
    """A `keras.layers.Dense` that stores and computes only its active blocks.

    Args:
        *args, **kwargs: arguments of `keras.layers.Dense`. A `kernel_regularizer` gets the
            stored values, of shape (columns of blocks, blocks in each, rows, columns).
        block_size: int, or two integers: the inputs and the outputs of a block. The layer pads
            a kernel that blocks do not divide.
        density: float in (0, 1], the fraction of blocks that are active in each column of
            blocks; at least one block is.
        seed: int, for the initial places of the blocks. Defaults to one drawn from Python's
            `random`, which `keras.utils.set_random_seed` seeds, so equal layers differ.

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
    """A `keras.layers.EinsumDense` that stores and computes only its active blocks.

    It must project the last axes: the summed axes are the last ones of the input, and the
    kernel's output axes are the last ones of the output, as in "abc,cd->abd" or
    "...x,xy->...y".

    Args:
        *args, **kwargs: arguments of `keras.layers.EinsumDense`.
        block_size, density, seed: as for `Dense`.

    Raises:
        ValueError: at build, if `equation` does not project the last axes.
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


def _keras_class(cls):
    """Returns the class of Keras that a block-sparse one stands for."""
    return next(base for base in cls.__mro__ if base.__module__.startswith("keras."))


def _rolled(rank, last):
    """Returns the order of axes that moves the last `last` of `rank` axes to the front."""
    return [*range(rank - last, rank), *range(rank - last)]


def projects_last_axes(layer) -> bool:
    """Returns True if an `EinsumDense` multiplies the last axes of its input by one matrix."""
    inputs, kernel, output = maskable.einsum_labels(layer)
    summed = "".join(label for label in kernel if label in inputs and label not in output)
    made = "".join(label for label in kernel if label in output and label not in inputs)
    return (
        len(summed) + len(made) == len(kernel)
        and bool(summed and made)
        and inputs.endswith(summed)
        and output == inputs[: -len(summed)] + made
    )
