"""Early-Bird tickets: channel masks that stop changing long before training ends."""

import warnings

import keras
import numpy as np

from tf_rigl._base import keras_internals
from tf_rigl._base.arguments import (
    ChecksArguments,
    check_flag,
    check_integer,
    check_number,
    unknown_name,
)
from tf_rigl._base.keras_internals import all_layers
from tf_rigl.channels import slimming
from tf_rigl.convert import copies


class EarlyBird(ChecksArguments, keras.callbacks.Callback):
    """Draws channel masks after each epoch, and stops training when they no longer change.

    The distance of two masks is the fraction of channels on which they differ. The ticket is the
    first mask that is closer than `threshold` to each of the `window - 1` masks before it.
    Train a model made by `with_scale_penalty`, remove the pruned channels with
    `remove_channels`, and train the smaller model further. Each `fit` starts anew.

    Args:
        prune_fraction: float in (0, 1), the fraction of channels to prune, as in `channel_masks`.
        threshold: float in (0, 1], the distance that masks must stay below.
        window: int, at least 2, the number of masks to compare; also the fewest epochs.
        stop: bool, whether training stops when the ticket is found.
        least: int, the fewest channels that each layer keeps.

    Attributes:
        masks: the ticket, a dict as `channel_masks` returns it, or None if none was found.
        epoch: int, the epoch after which it was found, counted from 0 as in Keras, or None.
        history: list of all masks, one for each epoch.
        first_epoch: int, the epoch of the first mask in `history`, or None: 0 unless `fit` was
            given an `initial_epoch`.

    Raises:
        ValueError: if an argument is out of range; when `fit` begins, if the model has no
            `BatchNormalization` layer with scales.

    Example:

    >>> hidden, norm = keras.layers.Dense(32), keras.layers.BatchNormalization()
    >>> layers = [keras.Input((16,)), hidden, norm, keras.layers.ReLU(), keras.layers.Dense(4)]
    >>> slim = tf_rigl.lottery.with_scale_penalty(keras.Sequential(layers), factor=1e-3)
    >>> slim.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    >>> bird = tf_rigl.lottery.EarlyBird(prune_fraction=0.5)
    >>> history = slim.fit(x, y, epochs=200, callbacks=[bird], verbose=0)
    >>> bird.epoch < 199  # The masks no longer changed, so training stopped early.
    True
    >>> small = tf_rigl.lottery.remove_channels(slim, bird.masks)
    >>> small.layers[1].units
    16

    Reference:

    - [Drawing Early-Bird Tickets](https://arxiv.org/abs/1909.11957), section 3.
    """

    def __init__(self, prune_fraction, threshold=0.1, window=5, stop=True, *, least=1):
        super().__init__()
        self.prune_fraction = slimming.check_fraction(prune_fraction)
        self.threshold = check_number(
            "threshold", threshold, above=0, at_most=1, what="the distance of masks"
        )
        if self.prune_fraction == 0:
            raise ValueError(
                "Argument `prune_fraction` must be above 0: masks that prune nothing never change. "
                f"Received: prune_fraction={prune_fraction!r}"
            )
        self.stop = check_flag("stop", stop)
        self.window = check_integer("window", window, 2)
        self.least = check_integer("least", least, 0)
        self._begin()

    def _begin(self):
        self.masks, self.epoch, self.history, self.first_epoch = None, None, [], None

    def on_train_begin(self, logs=None):
        """Clears the results of an earlier run; raises if the model has no scales."""
        self._begin()
        self._draw()

    def on_epoch_end(self, epoch, logs=None):
        """Draws a mask, and compares it with the masks of the epochs before."""
        if not self.history:
            self.first_epoch = epoch
        self.history.append(self._draw())
        *others, newest = self.history[-self.window :]
        if self.masks is not None or len(others) < self.window - 1:
            return
        if max(mask_distance(newest, other) for other in others) < self.threshold:
            self.masks, self.epoch = newest, epoch
            if self.stop:
                self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Warns if no ticket was found."""
        if self.masks is None:
            rows = self.distances()[-self.window :, -self.window :]
            far = f"the newest differs by {rows[-1].max():.2f}" if len(rows) else "no mask exists"
            warnings.warn(
                f"No Early-Bird ticket was found in {len(self.history)} epochs: masks of "
                f"{self.window} epochs must be closer than {self.threshold}, but {far}. `masks` "
                "is None.",
                stacklevel=2,
            )

    def distances(self):
        """Returns the distances between the masks of all epochs.

        Returns:
            An array of shape (epochs, epochs), symmetric, zeros on the diagonal.
        """
        flat = np.array([np.concatenate(list(masks.values())) for masks in self.history])
        if not len(flat):
            return np.zeros((0, 0))
        return (flat[:, None] != flat[None]).mean(axis=-1)

    def _draw(self):
        return slimming.channel_masks(self.model, self.prune_fraction, least=self.least)


def mask_distance(one, other) -> float:
    """Returns the fraction of channels on which two masks differ.

    Args:
        one, other: dicts of masks, from `channel_masks`.
    """
    differing = sum(np.count_nonzero(mask != other[path]) for path, mask in one.items())
    return differing / sum(mask.size for mask in one.values())


def low_precision(model, precision):
    """Copies a model in low precision, for a cheaper search of an Early-Bird ticket.

    On most machines the search is not faster: the copy only shows which masks it would find.

    - "bfloat16": layers compute in bfloat16 (the Keras policy "mixed_bfloat16"), with weights
      in float32. The layers that produce the outputs stay in float32. So do layers that hold
      others whose dtype is not in their configuration (some of your own).
    - "int8", simulated: forward passes round the kernels of `Dense`, convolutions, depthwise and
      separable convolutions to 255 levels, k * max|kernel| / 127 for k from -127 to 127.
      Gradients ignore the rounding. Activations, gradients, biases, normalisation and the
      weights that the optimizer changes are not rounded, nor are the kernels of layers inside
      other layers (`TimeDistributed`, some of your own); a warning names these.

    Args:
        model: a built functional or Sequential `keras.Model`, dense. It does not change.
        precision: "bfloat16" or "int8".

    Returns:
        A `keras.Model` with the same weights in the same order: `model.set_weights(
        search.get_weights())` copies them back, and channel masks fit both.

    Raises:
        ValueError: if an argument is invalid.

    Reference:

    - [Drawing Early-Bird Tickets](https://arxiv.org/abs/1909.11957), section 4.
    """
    if precision not in ("bfloat16", "int8"):
        raise unknown_name("precision", precision, ("bfloat16", "int8"), or_object=False)
    if not isinstance(model, keras.Model) or not copies.is_graph(model):
        raise ValueError(
            "Argument `model` must be a built functional or Sequential `keras.Model`. "
            f"Received: model={model!r}"
        )
    slimming.check_dense(model)
    layers = _graph_layers(model)
    if precision == "int8":
        held = _held_kernels(layers)
        if held:
            warnings.warn(
                f"The kernels of {', '.join(held.values())} are not rounded: these layers are "
                "inside other layers.",
                stacklevel=2,
            )
        chosen = [each for each in layers if type(each) in _KERNELS and id(each) not in held]
        return copies.copied(model, {id(each): _Maker(each, _rounded) for each in chosen})
    last = _last_layers(model.outputs)
    chosen = [each for each in layers if id(each) not in last and _can_be_lowered(each)]
    return copies.copied(model, {id(each): _Maker(each, _bfloat16) for each in chosen})


def _graph_layers(model):
    """Lists the layers of a graph, including those of nested graphs."""
    found = []
    for layer in model.layers:
        found += _graph_layers(layer) if _is_nested(layer) else [layer]
    return found


def _is_nested(operation):
    return isinstance(operation, keras.Model) and copies.is_graph(operation)


def _last_layers(outputs):
    """Returns the ids of the last layers before the outputs; other operations are passed over."""
    found, seen, due = set(), set(), list(outputs)
    while due:
        tensor = due.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, node, number = keras_internals.history(tensor)
        if _is_nested(operation):
            due.append(operation.outputs[number])
        elif isinstance(operation, keras.layers.Layer):
            found.add(id(operation))
        else:
            due += keras_internals.nodes_of(operation)[node].input_tensors
    return found


class _Maker:
    """Makes a layer that takes the place of another, for `copies.copied`."""

    def __init__(self, layer, make):
        self.layer, self.make = layer, make

    def __call__(self):
        return self.make(self.layer)


def _bfloat16(layer):
    new, fill = copies.twin(layer, dtype="mixed_bfloat16")
    for inner in all_layers(new):
        if inner.dtype_policy.name == "float32":
            inner.dtype_policy = "mixed_bfloat16"
    return new, fill


def _can_be_lowered(layer):
    """Returns True if a float32 layer can compute all in bfloat16, also after it is saved."""
    if layer.dtype_policy.name != "float32" or isinstance(layer, keras.layers.InputLayer):
        return False
    if len(all_layers(layer)) == 1:
        return True
    probe, _ = copies.twin(_bfloat16(layer)[0])
    if layer.get_build_config() is not None:  # Some layers make their sublayers here.
        probe.build_from_config(layer.get_build_config())
    inner = all_layers(probe)
    lowered = all(each.compute_dtype == "bfloat16" for each in inner)
    return lowered and len(inner) == len(all_layers(layer))


def _rounded(layer):
    new, fill = copies.twin(layer)
    own = {"dtype": layer.dtype_policy, "activity_regularizer": layer.activity_regularizer}
    return RoundedKernels(new, name=layer.name, **own), fill


def _held_kernels(layers):
    """Returns the names of layers with kernels that are inside other layers, by id."""
    return {
        id(inner): f"{layer.name}/{inner.name}"
        for layer in layers
        for inner in all_layers(layer, include_self=False)
        if type(inner) in _KERNELS
    }


_KERNELS = {
    **dict.fromkeys((keras.layers.Dense,), ("kernel",)),
    **dict.fromkeys((keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D), ("kernel",)),
    **dict.fromkeys((keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D), ("kernel",)),
    **dict.fromkeys(
        (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
        ("depthwise_kernel", "pointwise_kernel"),
    ),
}


@keras.saving.register_keras_serializable(package="tf_rigl")
class RoundedKernels(keras.layers.Wrapper):
    """Calls a layer with its kernels rounded to 8 bits; gradients ignore the rounding."""

    def __init__(self, layer, **kwargs):
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking

    def call(self, inputs):
        """Calls the layer with rounded kernels."""
        kernels = [getattr(self.layer, name) for name in _KERNELS[type(self.layer)]]
        with keras_internals.without_autocast():  # Rounds in the dtype of the variables.
            rounded = [(each, round_to_8_bits(each)) for each in kernels]
        with keras.StatelessScope(state_mapping=rounded):
            return self.layer.call(inputs)

    def compute_mask(self, inputs, previous_mask=None):
        """Returns the mask that the layer computes."""
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape):
        """Returns the output shape of the layer."""
        return self.layer.compute_output_shape(input_shape)


def round_to_8_bits(kernel):
    """Rounds a tensor to multiples of max|tensor| / 127; the gradient ignores the rounding."""
    kernel = keras.ops.convert_to_tensor(kernel)
    step = keras.ops.max(keras.ops.abs(kernel)) / 127
    safe = keras.ops.where(step > 0, step, keras.ops.ones_like(step))
    rounded = keras.ops.round(kernel / safe) * safe
    return kernel + keras.ops.stop_gradient(rounded - kernel)
