"""`MaskedWeight`: a dense variable that contains zeros, and its mask."""

import dataclasses
import weakref

import keras
import tensorflow as tf

from tf_rigl._base import tensors
from tf_rigl.patterns.base import Pattern
from tf_rigl.weights import adapters
from tf_rigl.weights.sparse_weight import Slot, SparseWeight, emptied


# Not a NamedTuple: Keras tracks the variables in tuples, and a layer tracks the weight already.
@dataclasses.dataclass(frozen=True, repr=False)
class MaskedWeight(SparseWeight):
    """A weight and its mask.

    Attributes:
        path: str, unique within the model, such as "encoder/dense/kernel".
        weight: `keras.Variable`, exactly 0.0 wherever the mask is 0.
        mask: `keras.Variable` of the weight's shape and dtype "bool".
        target_sparsity: float, the fraction of zeros to reach.
        pattern: `tf_rigl.patterns.Pattern`, which entries are kept or dropped together.
        layer: the `keras.layers.Layer` that holds the weight.
        state: dict of name to `keras.Variable` of the weight's shape and dtype: the method's
            own variables for the weight.
        trainers: set of the training loops that train the weight.
    """

    path: str
    weight: keras.Variable
    mask: keras.Variable
    target_sparsity: float
    pattern: Pattern
    layer: keras.layers.Layer | None = None
    state: dict = dataclasses.field(default_factory=dict)
    trainers: weakref.WeakSet = dataclasses.field(default_factory=weakref.WeakSet)
    gives_output: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return tuple(self.weight.shape)

    def dense(self, variable=None):
        return tf.convert_to_tensor((self.weight if variable is None else variable).value)

    def check(self, method):
        if method.freezes_others and adapters.of(self.layer, self.weight) is not None:
            raise ValueError(
                f"{type(method).__name__} trains a score for each weight and nothing else, so the "
                f"adapters of LoRA in layer {self.layer.name!r} would not be trained. Make an "
                "ordinary model first (`tf_rigl.strip`): there they are."
            )

    def masked_gradient(self, gradient):
        """Returns the gradient with zeros where the mask is 0."""
        return tensors.masked_gradient(gradient, self.mask)

    def emptied(self, slots):
        return emptied(self.mask, [Slot(self.weight), *slots])

    def zero_masked(self, variable, empty=0.0):
        variable.assign(tensors.where(self.mask, tf.convert_to_tensor(variable), empty or 0.0))

    def stray(self):
        mask = tf.convert_to_tensor(self.mask)
        return tf.math.count_nonzero((self.dense() != 0) & ~mask)

    def replaced(self, mask, new_mask, new_weight, slots=(), start="zero"):
        # Slots of dropped entries would be out of date; slots of grown entries start empty.
        warm = new_mask & ~mask if start == "mean" else None
        moved = emptied(mask & new_mask, slots, new_weight, warm)
        return [(self.mask, new_mask), (self.weight, new_weight), *moved]

    def layout(self):
        return tf.convert_to_tensor(self.mask)

    def followed(self, layout, slots):
        return emptied(layout & self.layout(), slots, self.dense())

    def set_mask(self, mask):
        self.check_mask(mask)
        self.mask.assign(mask)
        self.zero_masked(self.weight)
