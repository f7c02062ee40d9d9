"""Network slimming: channels ranked by the scales of batch normalisation."""

import keras
import numpy as np
from keras import layers

from tf_rigl import distributions
from tf_rigl._base.arguments import check_integer, check_number
from tf_rigl.convert import copies, sparsifying
from tf_rigl.convert.sparsified import SparsifiedModel
from tf_rigl.weights import maskable


def with_scale_penalty(model, factor=1e-4):
    """Copies a model and adds an L1 penalty on the scales of batch normalisation.

    Args:
        model: a built `keras.Model`, dense. It does not change; the copy has its weights.
        factor: float. The loss grows by `factor` times the sum of all |gamma|. It replaces the
            factor of an earlier such penalty.

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        ValueError: if the model has no `BatchNormalization` with scales, or the scales have
            another regularizer, which would be lost.

    Example:

    >>> model = tf_rigl.models.small_vgg((28, 28, 1), 10)  # 448 scales, all 1 at the start.
    >>> slim = tf_rigl.lottery.with_scale_penalty(model, factor=1e-3)
    >>> round(float(sum(slim.losses)), 3)
    0.448

    Reference:

    - [Network slimming](https://arxiv.org/abs/1708.06519), section 3.
    """
    factor = check_number("factor", factor, at_least=0)
    check_dense(model)
    for path, layer in scaled(model).items():
        if not isinstance(layer.gamma_regularizer, (keras.regularizers.L1, type(None))):
            raise ValueError(
                "Argument `model` must have no other regularizers of scales than L1. Received: "
                f"{layer.gamma_regularizer!r} of {path!r}"
            )
    copy = copies.copied(model)
    for layer in scaled(copy).values():
        # Keras saves the layer's regularizer and adds the variable's to the loss.
        layer.gamma_regularizer = layer.gamma.regularizer = keras.regularizers.L1(factor)
    return copy


def channel_masks(model, prune_fraction, *, least=1):
    """Selects the channels to keep: those of the largest |gamma| in the whole network.

    Args:
        model: a built `keras.Model`, dense or a `tf_rigl.SparseModel`.
        prune_fraction: float in [0, 1), the fraction of all channels with a scale to prune. The
            count is exact, floor(prune_fraction * channels); of equal scales the lower index is
            kept.
        least: int, the fewest channels that each layer keeps, those of its largest |gamma|. Early
            in training or at a high `prune_fraction`, one threshold for all layers can leave a
            layer a single channel, and the network cannot learn; a few channels prevent that.

    Returns:
        A dict of the path of each `BatchNormalization` layer that has scales, such as
        "block/bn", to a boolean array, True for the channels to keep.

    Raises:
        ValueError: if the model has no such layer, or `least` leaves too few channels to prune.

    Example:

    >>> norm = keras.layers.BatchNormalization(name="norm")
    >>> model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4), norm])
    >>> _ = norm.gamma.assign([0.1, 0.9, 0.5, 0.2])
    >>> tf_rigl.lottery.channel_masks(model, prune_fraction=0.5)
    {'norm': array([False,  True,  True, False])}

    Reference:

    - [Network slimming](https://arxiv.org/abs/1708.06519), section 3.
    """
    fraction = check_fraction(prune_fraction)
    least = check_integer("least", least, 0)
    scales = {path: _magnitude(layer.gamma) for path, layer in scaled(model).items()}
    sizes = [scale.size for scale in scales.values()]
    masks = [np.zeros(size, bool) for size in sizes]
    for scale, mask in zip(scales.values(), masks, strict=True):
        mask[np.argsort(-scale, kind="stable")[:least]] = True
    pooled, kept = np.concatenate(list(scales.values())), np.concatenate(masks)
    count = pooled.size - int(distributions.zeros(fraction, pooled.size))
    missing = count - np.count_nonzero(kept)
    if missing < 0:
        raise ValueError(
            "Argument `least` must leave room for `prune_fraction`, which keeps "
            f"{count} of {pooled.size} channels. "
            f"Received: least={least}, prune_fraction={prune_fraction}"
        )
    order = np.argsort(-pooled, kind="stable")
    kept[order[~kept[order]][:missing]] = True
    return dict(zip(scales, np.split(kept, np.cumsum(sizes)[:-1]), strict=True))


def check_fraction(value):
    """Returns `prune_fraction` as a float in [0, 1), or raises."""
    what = "the fraction of channels to prune"
    return check_number("prune_fraction", value, at_least=0, below=1, what=what)


def mask_channels(model, masks):
    """Copies a model and sets gamma and beta of the pruned channels to 0.

    Args:
        model: a built `keras.Model`, dense. It does not change.
        masks: dict of layer path to boolean array, from `channel_masks`.

    Returns:
        A `keras.Model` of the same size. Further training would bring the channels back;
        `remove_channels` removes them.

    Raises:
        ValueError: if the masks do not fit the model.
    """
    check_dense(model)
    _check_masks(masks, scaled(model))
    copy = copies.copied(model)
    found = scaled(copy)
    for path, mask in masks.items():
        layer = found[path]
        for variable in (layer.gamma, layer.beta):
            if variable is not None:
                variable.assign(np.where(mask, keras.ops.convert_to_numpy(variable), 0))
    return copy


def scaled(model):
    """Returns the `BatchNormalization` layers of a model that have scales, by path.

    Raises:
        ValueError: if the model has none, or is not built.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            f"Argument `model` must be a built `keras.Model`. Received: model={model!r}"
        )
    found, seen, taken = {}, set(), set()

    def visit(layer, route):
        for child in maskable.sublayers(layer):
            if id(child) in seen:
                continue
            seen.add(id(child))
            if isinstance(child, layers.BatchNormalization) and child.scale:
                found[maskable.unique("/".join((*route, child.name)), taken)] = child
            visit(child, (*route, child.name))

    visit(model.model if isinstance(model, SparsifiedModel) else model, ())
    if not found:
        raise ValueError(
            "Argument `model` must have `BatchNormalization` layers with `scale=True`. "
            f"Received: model={model!r}"
        )
    return found


def check_dense(model):
    """Raises if a model has masks."""
    if isinstance(model, keras.Model) and sparsifying.is_sparse(model):
        raise ValueError(
            "Argument `model` must be dense; `tf_rigl.strip` makes a sparse model dense. "
            f"Received: model={model!r}"
        )


def _magnitude(gamma):
    """Returns |gamma|; NaN counts as the lowest."""
    scale = np.abs(keras.ops.convert_to_numpy(gamma).astype("float32"))
    return np.where(np.isnan(scale), np.float32(-1), scale)


def _check_masks(masks, found):
    if not isinstance(masks, dict):
        raise ValueError(
            "Argument `masks` must be a dict of layer path to boolean array. "
            f"Received: masks={masks!r}"
        )
    for path, mask in masks.items():
        known = path in found
        if not known or np.shape(mask) != tuple(found[path].gamma.shape):
            shape = f"shape {tuple(found[path].gamma.shape)}" if known else f"one of {list(found)}"
            raise ValueError(
                f"Argument `masks` must fit the layers of the model: {shape}. "
                f"Received: shape {np.shape(mask)} for {path!r}"
            )
        if np.asarray(mask).dtype != bool:
            raise ValueError(
                "Argument `masks` must hold boolean arrays. "
                f"Received: {np.asarray(mask).dtype} for {path!r}"
            )
