"""Initial weights that fit the number of inputs that each unit has under its mask."""

import keras
import numpy as np
from keras.initializers import VarianceScaling

from tf_rigl._base import notices
from tf_rigl._base.arguments import unknown_name
from tf_rigl.convert import trained
from tf_rigl.weights import maskable

NAMES = ("model", "sparse")


def check(initialization, method):
    """Raises a `ValueError` unless the argument is known and goes with a method."""
    if not isinstance(initialization, str) or initialization not in NAMES:
        raise unknown_name("initialization", initialization, NAMES, or_object=False)
    if initialization == "sparse" and method.trained_state is not None:
        raise ValueError(
            "Argument `initialization='sparse'` needs a method that trains the weights themselves. "
            f"{type(method).__name__} keeps values for masked entries too, which belong to no one "
            "mask; 'edge_popup' scales its own: `tf_rigl.methods.EdgePopup(scale=True)`. "
            f"Received: initialization={initialization!r}, method={method!r}"
        )


def get(initialization):
    """Returns a `Scaling` for "sparse", None for "model", and a `Scaling` itself as it is."""
    if isinstance(initialization, Scaling):
        return initialization
    return Scaling() if initialization == "sparse" else None


class Scaling:
    """Scales random weights to the entries that are active; warns once if it changed none.

    Attributes:
        scaled: set of str, the paths of the weights that it has scaled.
    """

    def __init__(self):
        self.scaled = set()
        self._kept = {}  # Path -> the reason.
        self._due = 0  # Number of masks that are not drawn yet.
        self._told = False

    def drawing(self, draw):
        """Returns the function that draws a mask as `draw` does, and scales the weight to it."""
        self._due += 1

        def draw_and_scale(item):
            mask = draw(item)
            factors = self.factors(item, mask)
            if factors is not None:
                values = item.dense().numpy()
                item.weight.assign((values.astype(factors.dtype) * factors).astype(values.dtype))
            self._due -= 1
            if not self._due:
                self.warn()
            return mask

        return draw_and_scale

    def factors(self, item, mask):
        """Returns what to multiply a dense weight by, given its initial mask.

        Args:
            item: `tf_rigl.weights.masked_weight.MaskedWeight`. Nothing is masked yet.
            mask: boolean array or tensor of the weight's shape.

        Returns:
            A float64 array of that shape, or None if the weight stays as it is.
        """
        initializer, mask = trained.initializer_of(item), keras.ops.convert_to_numpy(mask)
        if not isinstance(initializer, VarianceScaling):
            name = "unknown" if initializer is None else _name(initializer)
            self._kept[item.path] = f"its initializer, {name}, counts no inputs or outputs"
        elif mask.all():
            self._kept[item.path] = "all of its entries are active"
        elif trained.is_trained(item, item.dense().numpy().ravel()):
            self._kept[item.path] = "it is trained already"
        else:
            self.scaled.add(item.path)
            return factors(initializer.mode, item.layer, mask)
        return None

    def warn(self):
        """Warns if no weight was scaled."""
        if self.scaled or self._told or not self._kept:
            return
        self._told = True
        reasons = [f"{path!r} ({reason})" for path, reason in self._kept.items()]
        more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        notices.warn(
            "`initialization='sparse'` has changed nothing: these weights stay as they are: "
            f"{', '.join(reasons[:3])}{more}."
        )


def factors(mode, layer, mask):
    """Returns the factors that give active entries the variance for what is active.

    `VarianceScaling` draws weights of variance `scale / n`, where `n` is the fan-in, the fan-out
    or the mean of both. The factor of an entry is `sqrt(n / n_active)`: its output has
    `n_active` active incoming entries, or its input as many outgoing ones. Both are those of the
    equation of an `EinsumDense`, and include the taps of a convolution.

    Args:
        mode: str, "fan_in", "fan_out" or "fan_avg".
        layer: the `keras.layers.Layer` that holds the weight.
        mask: boolean array of the weight's shape.

    Returns:
        A float64 array of that shape, 1 where the mask is 0.

    Example:

    >>> mask = np.array([[True, False], [False, False], [True, True], [True, False]])
    >>> factors("fan_in", keras.layers.Dense(2), mask).round(2).tolist()
    [[1.15, 1.0], [1.0, 1.0], [1.15, 2.0], [1.15, 1.0]]

    Reference:

    - [Gradient Flow in Sparse Neural Networks](https://arxiv.org/abs/2010.03533), section 3.1.
    """
    groups = {
        "fan_in": [maskable.input_axes],
        "fan_out": [maskable.output_axes],
        "fan_avg": [maskable.input_axes, maskable.output_axes],
    }
    found = [axes(layer, mask.shape) for axes in groups[mode]]
    dense = sum(np.prod([mask.shape[axis] for axis in axes]) for axes in found)
    active = sum(mask.sum(axis=axes, keepdims=True, dtype=np.int64) for axes in found)
    return np.where(mask, np.sqrt(dense / np.maximum(1, active)), 1.0)


def _name(initializer):
    return getattr(initializer, "__name__", type(initializer).__name__)
