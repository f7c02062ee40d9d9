"""A block-sparse weight, as methods and the training step see the masked ones."""

import dataclasses

import keras
import tensorflow as tf

from tf_rigl.block_sparse.geometry import Geometry
from tf_rigl.patterns.block import Block
from tf_rigl.weights import maskable


@dataclasses.dataclass(frozen=True, repr=False)
class BlockSparseWeight:
    """What `tf_rigl.weights.masked_weight.MaskedWeight` is for a weight that is
    stored as its blocks.

    Attributes:
        path: str, unique within the model.
        layer: the layer of `tf_rigl.block_sparse` that holds it.
        target_sparsity: float, by default the fraction of blocks that are not there.
    """

    path: str
    layer: keras.layers.Layer
    target_sparsity: float | None = None
    state = {}  # noqa: RUF012, methods that keep one cannot be used.
    is_packed = True

    def __post_init__(self):
        if self.target_sparsity is None:
            geometry = self.layer.geometry
            object.__setattr__(self, "target_sparsity", 1 - geometry.active / geometry.down)

    def __repr__(self):
        shape, target = self.shape, self.target_sparsity
        return f"BlockSparseWeight({self.path!r}, shape={shape}, target_sparsity={target:.4f})"

    @property
    def weight(self) -> keras.Variable:
        """The values of the blocks, of shape (across, active, rows, cols)."""
        return self.layer.values

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense kernel."""
        return self.layer.kernel_shape

    @property
    def mask(self):
        """The mask of the dense kernel, a boolean tensor made on each call."""
        geometry = self.layer.geometry
        return self.layer.as_kernel(geometry.mask(tf.convert_to_tensor(self.layer.places)))

    @property
    def is_sparse(self) -> bool:
        """Whether there are blocks that could be moved."""
        return self.target_sparsity > 0

    @property
    def pattern(self) -> Block:
        """Blocks, the same number in each column of them."""
        rows, cols = self.layer.block_size
        axes = maskable.axes(self.layer, self.shape)
        return Block(rows, cols, axes=axes, constant_fan_in=True)

    def target_active(self) -> int:
        """How many blocks are there."""
        return self.layer.geometry.across * self.layer.geometry.active

    active = target_active

    def dense(self, variable=None):
        """The weight, or another variable of its shape, as a dense kernel."""
        value = tf.convert_to_tensor((self.weight if variable is None else variable).value)
        places = tf.convert_to_tensor(self.layer.places)
        return self.layer.as_kernel(self.layer.geometry.unpack(value, places))

    def zero_masked(self, variable, empty=0.0):
        """Nothing is masked: what is zero is not stored."""
        del variable, empty

    def set_mask(self, mask):
        """Moves the blocks; those that were not there begin at zero."""
        mask = tf.convert_to_tensor(mask)
        weight = tf.where(mask, self.dense(), 0)
        for variable, value in self.changes(tf.convert_to_tensor(self.mask), mask, weight, ()):
            variable.assign(value)

    def regularizer_gradient(self):
        """The gradient of the regularizer's loss, as a dense kernel."""
        values = tf.convert_to_tensor(self.weight.value)
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = self.weight.regularizer(values)
        geometry, places = self.layer.geometry, tf.convert_to_tensor(self.layer.places)
        return self.layer.as_kernel(geometry.unpack(tape.gradient(loss, values), places))

    def masked_gradient(self, gradient):
        """The gradient as it is."""
        return gradient

    def emptied(self, slots):
        """Nothing has to be emptied."""
        del slots
        return []

    def changes(self, mask, new_mask, new_weight, slots):
        """Variables and what they become when the blocks move.

        Args:
            mask, new_mask: boolean tensors of the dense kernel's shape.
            new_weight: tensor of that shape.
            slots: list of (variable of the weight's shape, value of empty entries).
        """
        del mask
        geometry, layer = self.layer.geometry, self.layer
        old = tf.convert_to_tensor(layer.places)
        places = geometry.places(layer.as_matrix(new_mask))
        result = [
            (layer.places, places),
            (layer.values, geometry.pack(layer.as_matrix(new_weight), places)),
        ]
        # Where each block was, if it was: its optimizer slots go with it.
        same = places[:, :, None] == old[:, None, :]
        stays = tf.reduce_any(same, axis=2)[:, :, None, None]
        place = tf.argmax(tf.cast(same, tf.int32), axis=2, output_type=tf.int32)
        for slot, empty in slots:
            value = tf.gather(tf.convert_to_tensor(slot.value), place, batch_dims=1)
            result.append((slot, tf.where(stays, value, tf.constant(empty, value.dtype))))
        return result


def is_block_sparse(layer) -> bool:
    """Whether a layer stores its kernel as blocks."""
    return isinstance(getattr(layer, "geometry", None), Geometry)


def find(model) -> list[BlockSparseWeight]:
    """The block-sparse weights of a model, in model order."""
    found, seen = [], set()

    def visit(layer, route):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if is_block_sparse(layer) and layer.built:
            found.append(BlockSparseWeight("/".join((*route, "kernel")), layer))
        for child in maskable.sublayers(layer):
            visit(child, (*route, child.name))

    visit(model, ())
    return found
