"""`BlockSparseWeight`: a weight that stores only its active blocks."""

import contextlib
import dataclasses

import keras
import tensorflow as tf

from tf_rigl._base import tensors
from tf_rigl.block_sparse import probes
from tf_rigl.patterns.block import Block
from tf_rigl.weights import maskable
from tf_rigl.weights.sparse_weight import SparseWeight, set_all


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
    state = {}  # noqa: RUF012, it stays empty: `check` refuses methods that keep state.
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
        return Block(rows, cols, axes=axes, constant_fan_in=True)

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
        geometry = self.layer.geometry
        zeros = tf.zeros([geometry.inputs, geometry.outputs], self.layer.values.dtype)
        with probes.shown(self.layer, zeros):
            yield zeros

    @contextlib.contextmanager
    def overhear(self):
        geometry, heard = self.layer.geometry, []

        @tf.custom_gradient
        def zeros_of(values):
            # The zeros depend on the values, so a tape that differentiates by the values
            # passes here.
            def listen(gradient):
                mark = tf.zeros_like(values)  # By it the pass is known that a gradient came from.
                heard.append((mark, gradient))
                return mark

            return tf.zeros([geometry.inputs, geometry.outputs], values.dtype), listen

        with probes.shown(self.layer, lambda: zeros_of(tf.convert_to_tensor(self.weight.value))):
            yield heard

    def dense_gradient(self, gradient):
        """Returns the gradient of the product, plus the regularizer's, which the probe lacks."""
        gradient = self.layer.as_kernel(gradient)
        return gradient if self.weight.regularizer is None else gradient + self._regularizer()

    def _regularizer(self):
        """Returns the gradient of the regularizer's loss, in the dense kernel's shape."""
        values = tf.convert_to_tensor(self.weight.value)
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = self.weight.regularizer(values)
        geometry, places = self.layer.geometry, tf.convert_to_tensor(self.layer.places)
        return self.layer.as_kernel(geometry.unpack(tape.gradient(loss, values), places))

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

    def replaced(self, mask, new_mask, new_weight, slots=()):
        del mask
        geometry, layer = self.layer.geometry, self.layer
        old = self.layout()
        places = geometry.places(layer.as_matrix(new_mask))
        result = [
            (layer.places, places),
            (layer.values, geometry.pack(layer.as_matrix(new_weight), places)),
        ]
        return [*result, *_moved(old, places, result[1][1], slots)]

    def layout(self):
        return tf.convert_to_tensor(self.layer.places)

    def followed(self, layout, slots):
        values = tf.convert_to_tensor(self.weight.value)
        return _moved(layout, self.layout(), values, slots)

    def set_mask(self, mask):
        """Moves the blocks; newly active blocks start at zero."""
        self.check_mask(mask)
        mask = tf.convert_to_tensor(mask)
        weight = tf.where(mask, self.dense(), 0)
        set_all(self.replaced(tf.convert_to_tensor(self.mask), mask, weight))


def _moved(old, places, values, slots):
    """Returns pairs (slot, value): the slots of kept blocks move along, others start empty.

    Args:
        old, places: the places of blocks before and now, see `Geometry`.
        values: tensor, the values of the blocks now.
        slots: iterable of `Slot`.
    """
    same = places[:, :, None] == old[:, None, :]
    stays = tf.reduce_any(same, axis=2)[:, :, None, None]
    position = tf.argmax(tf.cast(same, tf.int32), axis=2, output_type=tf.int32)
    pairs = []
    for slot, empty in slots:
        value = tf.gather(tf.convert_to_tensor(slot.value), position, batch_dims=1)
        if empty is None:
            new = tf.where(stays, value, tf.cast(values, value.dtype))
        else:
            new = tensors.where(stays, value, empty)
        pairs.append((slot, new))
    return pairs


def check_method(method, subject):
    """Raises a `ValueError` if a method cannot train weights stored as blocks.

    Args:
        method: `tf_rigl.methods.Method`.
        subject: str, the beginning of the message.
    """
    if method.begins_dense or method.state_names:
        raise ValueError(
            f"{subject} that begins sparse and keeps no state for each weight, where layers store "
            "blocks: 'rigl' (with `gradient_batches=1`), 'set' or 'static'. "
            f"Received: method={method!r}"
        )
