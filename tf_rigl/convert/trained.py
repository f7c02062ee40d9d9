"""Signs that a model is trained already: a random mask would undo its training."""

import contextlib
import contextvars
import math
import re

import keras
import numpy as np
from keras import initializers

from tf_rigl._base import notices
from tf_rigl.methods.base import Method
from tf_rigl.weights import maskable

_expected = contextvars.ContextVar("expected", default=False)
_SHARE = 0.05  # Of the masked entries. A bias that was set by hand is in a smaller layer.
_SLACK = 0.02  # Relative: more than weights of 16 bits are rounded by.
_TRUNCATED = 0.87962566103423978  # Standard deviation of a normal one that ends at 2 and -2.
_INITIALIZERS = {
    "kernel": "kernel_initializer",
    "recurrent_kernel": "recurrent_initializer",
    "pointwise_kernel": "pointwise_initializer",
    "embeddings": "embeddings_initializer",
}
_FIXED = (initializers.Zeros, initializers.Ones, initializers.Constant)


@contextlib.contextmanager
def expected():
    """Returns a context without the warning: the caller replaces the random masks."""
    token = _expected.set(True)
    try:
        yield
    finally:
        _expected.reset(token)


def warn_of_random_masks(model, source, new=()):
    """Warns if the weights that a new sparse model masks at random were trained before.

    Args:
        model: the `tf_rigl.SparseModel`.
        source: the `keras.Model` that it was made of.
        new: container of the paths of weights that are known not to be trained.
    """
    method = model.method
    own = type(method).initial_mask is not Method.initial_mask
    if own or method.begins_dense or _expected.get():
        return
    items = [item for item in model.masked_weights if item.is_sparse and item.weight.trainable]
    judged = [(item, item.path not in new and is_trained(item)) for item in items]
    if all(trained is None for _, trained in judged):
        judged = [(item, _was_fitted(source)) for item in items]
    found = [item for item, trained in judged if trained]
    entries, all_entries = (sum(math.prod(i.shape) for i in each) for each in (found, items))
    if entries <= _SHARE * all_entries:
        return
    notices.warn(
        f"The model is trained already, and {type(method).__name__} begins with a random mask, "
        "which undoes most of the training. To make a trained model sparse, prune it: pass "
        "method='magnitude', and train on. To train from the start, pass a new model. "
        f"({len(found)} of {len(items)} masked weights look trained, such as {found[0].path!r}.)"
    )


def is_trained(item, values=None):
    """Returns whether a sparse weight, or the bias beside it, differs from its initial values.

    Args:
        item: `tf_rigl.weights.sparse_weight.SparseWeight`.
        values: flat array, the values to judge by; those of the active entries by default.

    Returns:
        A bool; or None if the initializers do not tell.
    """
    signs = [_bias_moved(item.layer), _kernel_moved(item, values)]
    return None if all(sign is None for sign in signs) else any(signs)


def initializer_of(item):
    """Returns the initializer of a sparse weight in a layer of Keras, or None."""
    known = isinstance(item.layer, tuple(maskable.MASKABLE_ATTRIBUTES))
    name = re.sub(r"_\d+$", "", item.path.rpartition("/")[2])  # Paths are made unique.
    return getattr(item.layer, _INITIALIZERS.get(name, ""), None) if known else None


def _was_fitted(model):
    """Returns whether the optimizer of a model has made a step."""
    optimizer = getattr(model, "optimizer", None)
    return optimizer is not None and int(optimizer.iterations) > 0


def _bias_moved(layer):
    """Returns whether a bias differs from a fixed initial value; None if it has none."""
    bias, initializer = (getattr(layer, name, None) for name in ("bias", "bias_initializer"))
    # The bias of an LSTM begins with zeros and ones.
    mixed = getattr(layer, "unit_forget_bias", False)
    if bias is None or mixed or not bias.trainable or type(initializer) not in _FIXED:
        return None
    first = keras.ops.convert_to_numpy(initializer(bias.shape, dtype=bias.dtype))
    return bool(np.any(keras.ops.convert_to_numpy(bias) != first))


def _kernel_moved(item, values):
    """Returns whether values lie beyond what the initializer of a weight can give, or None."""
    initializer = initializer_of(item)
    given = [_range(initializer, *fans) for fans in _fans(item)]
    if None in given:
        return None
    values = (item.active_values() if values is None else values).astype(np.float64)
    if not values.size:
        return None
    return not any(_fits(values, *each) for each in given)


def _fits(values, mean, deviation, bound):
    """Returns whether values look drawn from a distribution.

    Args:
        values: array of float.
        mean, deviation: float, those of the distribution.
        bound: float, the largest distance from the mean; may be infinite.
    """
    away = np.abs(values - mean)
    chance = 6 * deviation / math.sqrt(2 * values.size)
    spread = math.sqrt(np.mean(away**2))
    inside = away.max() <= (1 + _SLACK) * bound
    return inside and abs(spread - deviation) <= chance + _SLACK * deviation


def _fans(item):
    """Returns the pairs of fan-in and fan-out that Keras may have counted for a weight."""
    shape, axes = item.shape, maskable.axes(item.layer, item.shape)
    field = math.prod(shape[:-2])
    pairs = [(shape[-2] * field, shape[-1] * field) if len(shape) > 1 else (shape[0], shape[0])]
    if axes is not None:
        pairs.append(tuple(math.prod(shape[axis] for axis in group) for group in axes))
    if isinstance(item.layer, keras.layers.EinsumDense):  # Newer versions count by its equation.
        fan_in = maskable.fan_in(item.layer, shape)
        pairs.append((fan_in, math.prod(shape) // fan_in))
    return pairs


def _range(initializer, fan_in, fan_out):
    """Returns mean, standard deviation and largest distance of what an initializer draws.

    None if that is unknown.
    """
    kind = initializer
    if isinstance(kind, initializers.VarianceScaling):
        fan = {"fan_in": fan_in, "fan_out": fan_out}.get(kind.mode, (fan_in + fan_out) / 2)
        deviation = math.sqrt(kind.scale / max(1.0, fan))
        bounds = {"uniform": math.sqrt(3), "truncated_normal": 2 / _TRUNCATED}
        return 0.0, deviation, deviation * bounds.get(kind.distribution, math.inf)
    if isinstance(kind, initializers.TruncatedNormal):
        return kind.mean, _TRUNCATED * kind.stddev, 2 * kind.stddev
    if isinstance(kind, initializers.RandomNormal):
        return kind.mean, kind.stddev, math.inf
    if isinstance(kind, initializers.RandomUniform):
        half = (kind.maxval - kind.minval) / 2
        return (kind.maxval + kind.minval) / 2, half / math.sqrt(3), half
    return None
