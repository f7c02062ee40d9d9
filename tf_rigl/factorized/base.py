"""What all factorized layers have in common."""

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base.arguments import check_number
from tf_rigl.factorized import products, ranks

INITIALIZATIONS = ("spectral", "layer")


class Factorized(keras.layers.Layer):
    """A layer whose kernel is the product of the kernels of two ordinary layers: base class.

    The two are `first` and `second`, made when the layer is built; bias and activation are those
    of `second`. Where the factors are no smaller than the kernel, they are multiplied, and the
    ordinary operation runs once.

    A subclass names the ordinary class, and says how its kernel is a stack of matrices.

    Args:
        *args, **kwargs: arguments of the ordinary layer. A `kernel_regularizer` is that of each
            factor.
        rank: int, at least 1, the rank; or None.
        scale: float in (0, 1], the rank as a fraction of the smaller side of the kernel; or None.
        initialization: str, "spectral": a kernel is drawn by `kernel_initializer`, and the factors
            are those of its best approximation; "layer": `kernel_initializer` draws each factor.
        decay: float, at least 0; adds `decay / 2 * ||product||^2` to the loss. It takes the place
            of weight decay on the factors.

    Raises:
        ValueError: if an argument is out of range, both or none of `rank` and `scale` are given,
            or the ordinary layer has a constraint of its kernel.
    """

    ordinary = None

    def __init__(
        self, *args, rank=None, scale=None, initialization="spectral", decay=0.0, **kwargs
    ):
        template = self.ordinary(*args, **kwargs)
        super().__init__(
            name=template.name,
            dtype=template.dtype_policy,
            trainable=template.trainable,
            activity_regularizer=template.activity_regularizer,
        )
        ranks.check(rank, scale)
        if initialization not in INITIALIZATIONS:
            raise ValueError(
                f"Argument `initialization` must be one of {list(INITIALIZATIONS)}. "
                f"Received: initialization={initialization!r}"
            )
        self.rank, self.scale, self.initialization = rank, scale, initialization
        self.decay = check_number("decay", decay, at_least=0)
        self._check(template)
        self._options = template.get_config()
        self.supports_masking = template.supports_masking
        self._is_drawn = True

    def set_later(self):
        """Says that values are set after the layer is built, so that none need to be drawn."""
        self._is_drawn = False

    def _check(self, template):
        """Raises if the ordinary layer has what factors cannot have."""
        if template.kernel_constraint is not None:
            raise ValueError(
                "Argument `kernel_constraint` must be None: the kernel is a product of two. "
                f"Received: kernel_constraint={template.kernel_constraint!r}"
            )
        if self.decay and template.kernel_regularizer is not None:
            raise ValueError(
                "Only one of the arguments `decay` and `kernel_regularizer` may be given: the "
                f"decay of the product takes the place of the factors'. Received: "
                f"decay={self.decay}, kernel_regularizer={template.kernel_regularizer!r}"
            )

    # What a subclass says.

    def kernel_shape(self, input_shape) -> tuple:
        """Returns the shape of the ordinary kernel."""
        raise NotImplementedError

    def matrix(self, kernel):
        """Makes an ordinary kernel, a tensor or array, matrices: shape (..., inputs, outputs)."""
        raise NotImplementedError

    def kernel_of(self, matrix):
        """Makes matrices an ordinary kernel; the reverse of `matrix`."""
        raise NotImplementedError

    def parts(self, rank, first, second):
        """Returns the two ordinary layers, not built.

        Args:
            rank: int.
            first, second: dict, arguments of the parts: what all have in common is in them.
        """
        raise NotImplementedError

    def factor(self, number, kernel):
        """Makes the kernel of a part, 0 or 1, a stack of matrices: of r columns, or of r rows."""
        raise NotImplementedError

    def kernel_of_factor(self, number, factor, shape):
        """Makes a factor the kernel of a part; the reverse of `factor`."""
        raise NotImplementedError

    def product_call(self, inputs, kernel):
        """Runs the ordinary operation, without bias and activation, with a kernel."""
        raise NotImplementedError

    # What is the same for all.

    def build(self, input_shape):
        self._input_shape = tuple(input_shape)
        shape = self.kernel_shape(input_shape)
        self.sizes = _, inputs, outputs = self.sizes_for(shape)
        self.kernel_rank = rank = ranks.chosen(self.rank, self.scale, inputs, outputs)
        template = self.ordinary.from_config(self._options)
        drawn = self._initializers(template.kernel_initializer, shape, rank)
        regularizers = [template.kernel_regularizer] * 2
        if self.decay:
            regularizers = [products.FrobeniusDecay(self.decay, self.factors), None]
        options = [
            {"kernel_initializer": one, "kernel_regularizer": other}
            for one, other in zip(drawn, regularizers, strict=True)
        ]
        self.first, self.second = self.small(rank, *options)
        self.first.build(input_shape)
        self.second.build(self.first.compute_output_shape(input_shape))
        self.built = True

    def build_from_config(self, config):
        self.set_later()  # To the values of a file.
        super().build_from_config(config)

    def sizes_for(self, shape) -> tuple:
        """Returns the number of matrices of a kernel of this shape, their inputs and outputs."""
        *stack, inputs, outputs = self.matrix(np.empty(shape, bool)).shape
        return int(np.prod(stack, initial=1)), inputs, outputs

    def _initializers(self, kernel, shape, rank):
        """Returns the initializers of the two factors, given that of the kernel."""
        if not self._is_drawn:  # The decomposition of a large kernel takes long.
            return ["zeros"] * 2
        if self.initialization == "spectral":
            draw = products.Draw(kernel, shape, self.matrix, rank)
            return [products.FactorOf(draw, n, self._restore(n)) for n in (0, 1)]
        config = kernel.get_config()
        if isinstance(config.get("seed"), int):
            config["seed"] += 1  # Else both factors would hold the same numbers.
        return [kernel, type(kernel).from_config(config)]

    def _restore(self, number):
        return lambda factor, shape: self.kernel_of_factor(number, factor, shape)

    def small(self, rank, first=None, second=None):
        """Returns the two ordinary layers, not built, with arguments of the parts' kernels."""
        template = self.ordinary.from_config(self._options)
        common = {"dtype": self.dtype_policy}
        last = {
            "use_bias": getattr(template, "use_bias", None),
            "activation": template.activation,
            "bias_initializer": template.bias_initializer,
            "bias_regularizer": template.bias_regularizer,
            "bias_constraint": template.bias_constraint,
        }
        last = {key: value for key, value in last.items() if key != "use_bias" or value is not None}
        return self.parts(
            rank,
            {**common, "name": "first", **(first or {})},
            {**common, **last, "name": "second", **(second or {})},
        )

    def plain(self):
        """Returns the ordinary layer, not built, without a regularizer of its kernel."""
        config = {**self._options, "name": self.name, "kernel_regularizer": None}
        return self.ordinary.from_config(config)

    def factors(self):
        """Returns the factors as tensors: (..., inputs, rank) and (..., rank, outputs)."""
        kernels = self.first.kernel, self.second.kernel
        return tuple(
            self.factor(number, tf.convert_to_tensor(kernel))
            for number, kernel in enumerate(kernels)
        )

    def product(self):
        """Returns the kernel that an ordinary layer would have, as a tensor."""
        return self.kernel_of(tf.matmul(*self.factors()))

    def set_kernel(self, kernel):
        """Sets the factors to those of the best approximation of an ordinary kernel."""
        found = products.split(self.matrix(np.asarray(kernel)), self.kernel_rank)
        for number, (part, factor) in enumerate(zip((self.first, self.second), found, strict=True)):
            part.kernel.assign(self.kernel_of_factor(number, factor, part.kernel.shape))

    @property
    def is_smaller(self) -> bool:
        """Whether the factors have fewer parameters than the kernel."""
        _, inputs, outputs = self.sizes
        return self.kernel_rank * (inputs + outputs) < inputs * outputs

    def call(self, inputs):
        if self.is_smaller:
            return self.second(self.first(inputs))
        outputs = self.product_call(inputs, self.product())
        if self.second.bias is not None:
            outputs = self.with_bias(outputs, self.second.bias)
        return self.second.activation(outputs)

    def with_bias(self, outputs, bias):
        """Adds the bias of the second layer."""
        return outputs + bias

    def compute_output_shape(self, input_shape):
        return self.ordinary.from_config(self._options).compute_output_shape(input_shape)

    def get_config(self):
        own = {"rank": self.rank, "scale": self.scale}
        own |= {"initialization": self.initialization, "decay": self.decay}
        named = {"name": self.name, "trainable": self.trainable}
        return {**self._options, **named, **own}
