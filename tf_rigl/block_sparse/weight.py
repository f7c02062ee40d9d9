"""`BlockSparseWeight`: a weight that stores only its active blocks."""

import contextlib
import dataclasses
from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from tf_rigl.block_sparse import probes, updating
from tf_rigl.block_sparse.factors import Factors
from tf_rigl.block_sparse.probes import Listener
from tf_rigl.block_sparse.strips import LIMIT, Strips
from tf_rigl.patterns.block import Block
from tf_rigl.weights import maskable
from tf_rigl.weights.sparse_weight import Probe, SparseWeight, set_all


@dataclasses.dataclass(frozen=True, repr=False)
class BlockSparseWeight(SparseWeight):
    """The kernel of a block-sparse layer.

    Attributes:
        path: str, unique within the model.
        layer: the layer of `tf_rigl.block_sparse` that holds it.
        target_sparsity: float, by default the fraction of blocks that are not active.
    """

    path: str
    layer: keras.layers.Layer
    target_sparsity: float | None = None
    gives_output: bool = False
    state: ClassVar[dict] = {}
    compute = "sparse"

    def __post_init__(self):
        if self.target_sparsity is None:
            geometry = self.layer.geometry
            object.__setattr__(self, "target_sparsity", 1 - geometry.active / geometry.down)

    @property
    def weight(self) -> keras.Variable:
        """The values of the blocks, of shape (across, active, rows, cols)."""
        return self.layer.values

    @property
    def trainers(self):
        """The set of the training loops that train the weight."""
        return self.layer.trainers

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense kernel."""
        return self.layer.kernel_shape

    @property
    def mask(self):
        """The mask of the dense kernel, a boolean tensor that each access computes again."""
        geometry = self.layer.geometry
        return self.layer.as_kernel(geometry.mask(tf.convert_to_tensor(self.layer.places)))

    @property
    def pattern(self) -> Block:
        """The pattern: blocks, the same number in each column of blocks."""
        rows, cols = self.layer.block_size
        axes = maskable.axes(self.layer, self.shape)
        taps = "all" if self.layer.taps > 1 else "each"
        return Block(rows, cols, axes=axes, constant_fan_in=True, taps=taps)

    def target_active(self) -> int:
        """Returns the number of active blocks, which never changes."""
        return self.layer.geometry.across * self.layer.geometry.active

    active = target_active

    def dense(self, variable=None):
        value = tf.convert_to_tensor((self.weight if variable is None else variable).value)
        places = tf.convert_to_tensor(self.layer.places)
        return self.layer.as_kernel(self.layer.geometry.unpack(value, places))

    def check(self, method):
        check_method(method, "Argument `method` must be one")

    def caution(self, optimizer):
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        # Adafactor divides by the mean of its statistics of a matrix, here of a block. The
        # square of its default `epsilon_1`, which should keep that above 0, is 0 in float32.
        if isinstance(optimizer, keras.optimizers.Adafactor) and optimizer.epsilon_1 < 1e-15:
            return (
                "Adafactor gives NaN if all gradients of a block are zero. Make it with a larger "
                f"epsilon, such as `epsilon_1=1e-12`. Received: epsilon_1={optimizer.epsilon_1}"
            )
        return None

    @contextlib.contextmanager
    def probe(self):
        geometry, mark, zeros = self.layer.geometry, tf.zeros([]), None
        # Where nothing uses it, a graph does not compute it.
        if not tf.executing_eagerly() or geometry.inputs * geometry.outputs <= LIMIT:
            zeros = tf.zeros([geometry.inputs, geometry.outputs], self.layer.values.dtype)
        listener = Listener(self.layer, lambda: mark, zeros)
        with probes.shown(listener):
            yield Probe([mark] if zeros is None else [mark, zeros], self._found(listener))

    def _found(self, listener):
        """Returns the function of a `Probe` that returns the dense gradient."""

        def found(gradients):
            whole = gradients[1] if len(gradients) > 1 else None
            if gradients[0] is None and whole is None:
                return None
            return self.joined([each for _, each in listener.heard], whole)

        return found

    @contextlib.contextmanager
    def overhear(self):
        listener = Listener(self.layer, lambda: tf.convert_to_tensor(self.weight.value))
        with probes.shown(listener):
            yield listener.heard

    def joined(self, heard, whole=None):
        return Factors(Strips(self.layer), heard, whole)

    def dense_gradient(self, gradient):
        """Returns the gradient of the product, plus the regularizer's, which the probe lacks."""
        return gradient if self.weight.regularizer is None else gradient.plus(self._regularizer())

    def _regularizer(self):
        """Returns the gradient of the regularizer's loss by the stored values."""
        values = tf.convert_to_tensor(self.weight.value)
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = self.weight.regularizer(values)
        return tape.gradient(loss, values)

    def masked_gradient(self, gradient):
        """Returns the gradient unchanged: masked entries are not stored."""
        return gradient

    def emptied(self, slots):
        del slots
        return []

    def zero_masked(self, variable, empty=0.0):
        del variable, empty

    def stray(self):
        return tf.zeros([], tf.int64)

    def present(self):
        return self.layer.geometry.entries(self.layer.places.numpy())

    def active_values(self):
        values, places = (v.numpy() for v in (self.weight, self.layer.places))
        return values[np.asarray(self.layer.geometry.inside(places))]

    def footprint(self):
        return self.layer.geometry.units(self.layer.places.numpy()).numpy()

    def part_sizes(self):
        return self.layer.geometry.sizes()

    def alive(self, inputs):
        del inputs  # Each column of blocks has an active one.
        return np.ones(self.layer.geometry.outputs, bool)

    def used(self, inputs):
        del inputs
        used = (self.weight.numpy() != 0).any(axis=(1, 2))
        return used.ravel()[: self.layer.geometry.outputs]

    def fault(self):
        return self.layer.geometry.fault(self.layer.places.numpy())

    def evidence(self, gradient, seed):
        return super().evidence(None if gradient is None else gradient.dense(), seed)

    def changes(self, method, counts, gradient, seed, slots=(), *, usable=None, compiled=None):
        if method.has_own_update:  # It has to see the dense kernel.
            return super().changes(
                method, counts, gradient, seed, slots, usable=usable, compiled=compiled
            )
        old = self.layout()
        places, values = updating.moved(self, method, counts, gradient, seed, usable)
        pairs = [(self.layer.places, places), (self.layer.values, values)]
        inside = self._warm(places, method.slots)
        return [*pairs, *updating.slots_moved(old, places, values, slots, inside)]

    def _warm(self, places, start):
        """Returns which stored values are entries of the kernel, if slots start at a mean."""
        return self.layer.geometry.inside(places) if start == "mean" else None

    def replaced(self, mask, new_mask, new_weight, slots=(), start="zero"):
        del mask
        geometry, layer = self.layer.geometry, self.layer
        old = self.layout()
        places = geometry.places(layer.as_matrix(new_mask))
        result = [
            (layer.places, places),
            (layer.values, geometry.pack(layer.as_matrix(new_weight), places)),
        ]
        inside = self._warm(places, start)
        return [*result, *updating.slots_moved(old, places, result[1][1], slots, inside)]

    def layout(self):
        return tf.convert_to_tensor(self.layer.places)

    def followed(self, layout, slots):
        values = tf.convert_to_tensor(self.weight.value)
        return updating.slots_moved(layout, self.layout(), values, slots)

    def set_mask(self, mask):
        """Moves the blocks; newly active blocks start at zero."""
        self.check_mask(mask)
        mask = tf.convert_to_tensor(mask)
        weight = tf.where(mask, self.dense(), 0)
        set_all(self.replaced(tf.convert_to_tensor(self.mask), mask, weight))


def check_method(method, subject):
    """Raises a `ValueError` if a method cannot train weights stored as blocks.

    Args:
        method: `tf_rigl.methods.Method`.
        subject: str, the beginning of the message.
    """
    if method.begins_dense or method.state_names or not method.keeps_counts:
        raise ValueError(
            f"{subject} that begins sparse, keeps the number of blocks, and has no state for each "
            "weight, where layers store blocks: 'rigl' (with `gradient_batches=1`), 'set' or "
            "'static'. "
            f"Received: method={method!r}"
        )
