"""Measures which block size is fastest for a model on this machine."""

import dataclasses
import functools
import math
import warnings

import keras
import numpy as np
import tensorflow as tf

from tf_rigl import patterns
from tf_rigl._base import tables, timing
from tf_rigl._base.arguments import check_integer, check_number, check_sparsity
from tf_rigl.block_sparse import conversion
from tf_rigl.convert import copies, sparsifying
from tf_rigl.weights import maskable, targets


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The speed of a model with one block size.

    Attributes:
        block_size: int, or two integers; None for the dense model.
        milliseconds: float, the median time of a training step.
        times_faster: float, the dense model's time divided by this one.
        sparsity: float, the fraction of zeros that the model has.
        layers: list of str, the paths of the weights that are stored as blocks.
        pattern: str, the argument of `sparsify`, or None for the dense model.
    """

    block_size: int | tuple[int, int] | None
    milliseconds: float
    times_faster: float
    sparsity: float
    layers: list[str]
    pattern: str | None = None


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The result of `tf_rigl.block_sparse.tune`; `print` shows it as a table.

    Attributes:
        rows: list of `Measurement`, the dense model first.
    """

    rows: list[Measurement]

    @property
    def best(self) -> int | tuple[int, int] | None:
        """Returns the fastest block size, or None if the dense model is fastest."""
        return self._fastest.block_size

    @property
    def pattern(self) -> str | None:
        """Returns the pattern with the fastest blocks, or None if the dense model is fastest."""
        return self._fastest.pattern

    @property
    def _fastest(self):
        return min(self.rows, key=lambda row: row.milliseconds)

    def __str__(self):
        header = ("block size", "ms", "times faster", "sparsity", "layers")
        cells = [
            (
                "x".join(map(str, np.atleast_1d(row.block_size or "dense"))),
                f"{row.milliseconds:.2f}",
                f"{row.times_faster:.2f}",
                "" if row.block_size is None else f"{row.sparsity:.3f}",
                _listed(row.layers),
            )
            for row in self.rows
        ]
        lines = tables.text(header, cells, left={4}, rule=False)
        best = "the dense model" if self.pattern is None else f"pattern={self.pattern!r}"
        return "\n".join([*lines, f"Fastest: {best}"])


def tune(
    model,
    batch_size,
    *,
    density=0.1,
    block_sizes=(16, 32, 64, 128),
    distribution="erk",
    exclude=(),
    optimizer="sgd",
    jit_compile=False,
    inputs=None,
    rounds=7,
    steps=3,
):
    """Measures training steps of a model, dense and with blocks of several sizes.

    A step runs forward, backward and the optimizer, with the mean square of the outputs as the
    loss. It does not move blocks. The models take turns, so other load on the machine slows all
    of them; the median over the rounds counts. Larger blocks are faster, up to a size; with
    smaller ones the model may learn better.

    Args:
        model: a built `keras.Model`, functional or Sequential. It is not changed.
        batch_size: int, the number of examples in a step.
        density: float in (0, 1), the fraction of active entries.
        block_sizes: tuple of int, sizes of square blocks, or of pairs of int, such as `(1, 32)`:
            the inputs and the outputs of a block. Blocks of convolutions cover all taps. Sizes
            larger than every kernel are skipped.
        distribution, exclude: as in `tf_rigl.sparsify`.
        optimizer: str or `keras.optimizers.Optimizer`.
        jit_compile: bool, whether XLA compiles the steps.
        inputs: a batch for the model. Defaults to random numbers, and zeros for integers.
        rounds: int, the number of turns of each model.
        steps: int, the number of steps in a turn.

    Returns:
        A `Tuning`.

    Raises:
        ValueError: if an argument is out of range, or no kernel can be stored as blocks.

    Example:

    >>> tuning = tf_rigl.block_sparse.tune(
    ...     model, batch_size=64, density=0.5, block_sizes=(2, 4), rounds=1, steps=1
    ... )
    >>> print(tuning)  # doctest: +ELLIPSIS
    block size ...  times faster  sparsity  layers
         dense ...
             2 ... hidden/kernel...
             4 ... hidden/kernel...
    Fastest: ...
    >>> pattern = tuning.pattern or "block_4x4"  # None: the dense model was the fastest.
    >>> sparse = tf_rigl.sparsify(model, sparsity=0.5, pattern=pattern, compute="sparse")
    """
    is_model = isinstance(model, keras.Model)
    if not is_model or not copies.is_graph(model) or sparsifying.is_sparse(model):
        raise ValueError(
            "Argument `model` must be a built functional or Sequential model that is not sparse. "
            f"Received: model={model!r}"
        )
    batch_size = check_integer("batch_size", batch_size, 1)
    rounds, steps = check_integer("rounds", rounds, 1), check_integer("steps", steps, 1)
    density = check_number(
        "density", density, above=0, below=1, what="the fraction of weights kept"
    )
    if not isinstance(block_sizes, (tuple, list)):
        raise ValueError(
            "Argument `block_sizes` must be a tuple or list of integers, or of pairs of them. "
            f"Received: block_sizes={block_sizes!r}"
        )
    sizes = {size: _blocks(model, size) for size in map(_checked, block_sizes)}
    possible = {size: blocks for size, blocks in sizes.items() if _fits(model, blocks)}
    if not possible:
        raise ValueError(
            "Argument `block_sizes` has no size that fits a kernel of the model. "
            f"Received: block_sizes={block_sizes!r}"
        )
    models = {None: keras.models.clone_model(model)}
    make = functools.partial(
        sparsifying.sparsify,
        model,
        method="static",
        sparsity=check_sparsity("sparsity", 1 - density),
        distribution=distribution,
        exclude=exclude,
        seed=0,
        compute="sparse",
    )
    with warnings.catch_warnings():
        # The table shows the sparsity that each model has.
        warnings.filterwarnings("ignore", "The density differs from the requested one")
        models |= {size: make(pattern=blocks) for size, blocks in possible.items()}
    if inputs is None:
        # A Sequential model has no `input` before it is called.
        symbolic = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
        inputs = keras.tree.map_structure(lambda x: _example(x, batch_size), symbolic)
    runners = {size: _step(each, inputs, optimizer, jit_compile) for size, each in models.items()}
    times = timing.in_turns(runners, rounds, steps, wait=_wait)
    rows = []
    for size, each in models.items():
        weights = [] if size is None else each.masked_weights
        rows.append(
            Measurement(
                block_size=size,
                milliseconds=1000 * times[size],
                times_faster=times[None] / times[size],
                sparsity=0.0 if size is None else each.sparsity,
                layers=[item.path for item in weights if item.compute == "sparse"],
                pattern=None if size is None else str(possible[size]),
            )
        )
    return Tuning(rows)


def _checked(size):
    """Returns an integer, or a tuple of two."""
    if isinstance(size, (tuple, list)) and len(size) == 2:
        return tuple(check_integer("block_sizes", each, 1) for each in size)
    return check_integer("block_sizes", size, 1)


def _blocks(model, size):
    """Returns blocks of a size; they cover all taps if the model has convolutions of several."""
    rows, cols = size if isinstance(size, tuple) else (size, size)
    found = (getattr(each.layer, "kernel_size", ()) for each in maskable.find(model))
    several = any(math.prod(taps) > 1 for taps in found)
    return patterns.Block(rows, cols, taps="all" if several else "each")


def _fits(model, blocks) -> bool:
    """Returns whether some kernel has several rows of blocks and can be stored as blocks."""
    pattern = patterns.Block(**{**blocks.get_config(), "constant_fan_in": True})
    for found in maskable.find(model):
        fitted, shape = targets.fit(pattern, found), tuple(found.weight.shape)
        several = fitted.units(shape) > fitted.step(shape)
        if several and conversion.obstacle(found.layer, shape, fitted) is None:
            return True
    return False


def _example(tensor, batch_size):
    """Returns random numbers for a symbolic input, or zeros if its dtype is no float."""
    shape = (batch_size, *tensor.shape[1:])
    if None in shape:
        raise ValueError(
            "Argument `inputs` must be given if the model has inputs of unknown shape. "
            f"Received: inputs=None, model with input shape {tensor.shape}"
        )
    numbers = np.random.default_rng(0).standard_normal(shape)
    return tf.cast(
        numbers if keras.backend.is_float_dtype(tensor.dtype) else 0 * numbers, tensor.dtype
    )


def _step(model, inputs, optimizer, jit_compile):
    """Returns a function that runs a training step and returns the loss."""
    optimizer = keras.optimizers.get(optimizer)
    optimizer = type(optimizer).from_config(optimizer.get_config())
    variables = model.trainable_variables
    optimizer.build(variables)

    def step(inputs):
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(model(inputs, training=True))
            loss = tf.add_n([tf.reduce_mean(tf.square(tf.cast(y, "float32"))) for y in outputs])
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    # TensorFlow warns if one code object makes many functions; a partial has no code object.
    step = tf.function(functools.partial(step), autograph=False, jit_compile=jit_compile)
    return lambda: step(inputs)


def _wait(loss):
    """Waits until a loss is computed."""
    return loss.numpy()


def _listed(paths):
    """Returns the first three paths and the number of others, for a line of the table."""
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(paths[:3]) + more
