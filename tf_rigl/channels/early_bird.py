"""Early-Bird tickets: channel masks that stop changing long before training ends."""

import warnings

import keras
import numpy as np

from tf_rigl._base import keras_internals
from tf_rigl._base.arguments import check_integer, check_sparsity, unknown_name
from tf_rigl._base.keras_internals import all_layers
from tf_rigl.channels import slimming
from tf_rigl.convert import copies


class EarlyBird(keras.callbacks.Callback):
    """Draws channel masks after each epoch, and stops training when they no longer change.

    The distance of two masks is the share of channels that one keeps and the other does not. The
    ticket is drawn when the newest mask is closer than `threshold` to each of the
    `window - 1` before it. Train with `with_scale_penalty`; make the ticket real with
    `remove_channels`, and train it on. Each `fit` begins anew.

    Args:
        prune_fraction: float in (0, 1), of all channels, as in `channel_masks`.
        threshold: float in (0, 1], the distance that all have to be below.
        window: int, at least 2, how many masks are compared; also the fewest epochs.
        stop: bool, whether training stops there.
        least: int, how many channels each layer keeps at least.

    Attributes:
        masks: the ticket, a dict as `channel_masks` returns it, or None if none was found.
        epoch: int, the epoch after which it was drawn, counted from 0 as Keras does, or None.
        history: list of all masks drawn, one an epoch.
        first_epoch: int, the epoch of the first of these, or None: 0 unless `fit` was given an
            `initial_epoch`.

    Raises:
        ValueError: if an argument is out of range, or at the beginning of `fit`, if the model has
            no scales to draw masks by.

    Example:

    >>> bird = tf_rigl.lottery.EarlyBird(prune_fraction=0.5)
    >>> history = slim.fit(x, y, epochs=100, callbacks=[bird])
    >>> small = tf_rigl.lottery.remove_channels(slim, bird.masks)

    Reference:

    - [Drawing Early-Bird Tickets](https://arxiv.org/abs/1909.11957), section 3.
    """

    def __init__(self, prune_fraction, threshold=0.1, window=5, stop=True, *, least=1):
        super().__init__()
        self.prune_fraction = check_sparsity("prune_fraction", prune_fraction)
        number = not isinstance(threshold, bool) and isinstance(threshold, (int, float))
        if not number or not 0 < threshold <= 1:
            raise ValueError(
                "Argument `threshold` must be a number in (0, 1]: the distance of masks. "
                f"Received: threshold={threshold!r}"
            )
        if self.prune_fraction == 0:
            raise ValueError(
                "Argument `prune_fraction` must be above 0: masks that prune nothing never change. "
                f"Received: prune_fraction={prune_fraction!r}"
            )
        self.threshold, self.stop = threshold, bool(stop)
        self.window = check_integer("window", window, 2)
        self.least = check_integer("least", least, 0)
        self._begin()

    def _begin(self):
        self.masks, self.epoch, self.history, self.first_epoch = None, None, [], None

    def on_train_begin(self, logs=None):
        """Forgets an earlier run, and fails early where there is nothing to draw."""
        self._begin()
        self._draw()

    def on_epoch_end(self, epoch, logs=None):
        """Draws a mask, and looks how far it is from those before."""
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
        """Says so if no ticket was found."""
        if self.masks is None:
            rows = self.distances()[-self.window :, -self.window :]
            apart = f"the last are {rows[-1].max():.2f} apart" if len(rows) else "none was drawn"
            warnings.warn(
                f"No Early-Bird ticket was found in {len(self.history)} epochs: masks of "
                f"{self.window} epochs have to be closer than {self.threshold}, {apart}. `masks` "
                "is None.",
                stacklevel=2,
            )

    def distances(self):
        """The distances between the masks of all epochs.

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
    """The share of channels that one of two masks keeps and the other does not.

    Args:
        one, other: dicts of masks, from `channel_masks`.
    """
    differing = sum(np.count_nonzero(mask != other[path]) for path, mask in one.items())
    return differing / sum(mask.size for mask in one.values())


def low_precision(model, precision):
    """A copy of a model for a cheaper search of an Early-Bird ticket.

    On most machines the search is not faster: this shows what masks it would find.

    - "bfloat16": layers compute in bfloat16 (Keras's policy "mixed_bfloat16") on weights kept
      in float32. The layers that the outputs come from stay in float32, and so do layers that
      hold others whose type their configuration does not say (some of your own).
    - "int8", simulated: in forward passes the kernels of `Dense`, convolutions, depthwise and
      separable convolutions are rounded to 255 levels, k * max|kernel| / 127 for k from -127
      to 127; gradients pass as if they were not. Activations, gradients, biases, normalisation
      and the weights that the optimizer changes stay as they are. So do kernels inside of
      layers that hold others (`TimeDistributed`, some of your own), which a warning names.

    Args:
        model: a built functional or Sequential `keras.Model`, dense. It is left as it is.
        precision: "bfloat16" or "int8".

    Returns:
        A `keras.Model` with the same weights in the same order: `model.set_weights(
        search.get_weights())` brings them back, and channel masks fit both.

    Raises:
        ValueError: if an argument is not possible.

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
                f"The kernels of {', '.join(held.values())} are not rounded: only those of layers "
                "that are in the graph themselves are.",
                stacklevel=2,
            )
        chosen = [each for each in layers if type(each) in _KERNELS and id(each) not in held]
        return copies.copied(model, {id(each): _Maker(each, _rounded) for each in chosen})
    last = _last_layers(model.outputs)
    chosen = [each for each in layers if id(each) not in last and _can_be_lowered(each)]
    return copies.copied(model, {id(each): _Maker(each, _bfloat16) for each in chosen})


def _graph_layers(model):
    """The layers of a graph, those of nested graphs among them."""
    found = []
    for layer in model.layers:
        found += _graph_layers(layer) if _is_nested(layer) else [layer]
    return found


def _is_nested(operation):
    return isinstance(operation, keras.Model) and copies.is_graph(operation)


def _last_layers(outputs):
    """The ids of the layers that outputs come from, perhaps by operations that are no layers."""
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
    """Makes a layer for the place of another, for `copies.copied`."""

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
    """Whether a layer computes in float32, and all of it can in bfloat16, also when saved."""
    if layer.dtype_policy.name != "float32" or isinstance(layer, keras.layers.InputLayer):
        return False
    if len(all_layers(layer)) == 1:
        return True
    probe, _ = copies.twin(_bfloat16(layer)[0])
    if layer.get_build_config() is not None:  # Some make layers only then.
        probe.build_from_config(layer.get_build_config())
    inner = all_layers(probe)
    lowered = all(each.compute_dtype == "bfloat16" for each in inner)
    return lowered and len(inner) == len(all_layers(layer))


def _rounded(layer):
    new, fill = copies.twin(layer)
    own = {"dtype": layer.dtype_policy, "activity_regularizer": layer.activity_regularizer}
    return RoundedKernels(new, name=layer.name, **own), fill


def _held_kernels(layers):
    """The names of layers inside of others, whose kernels stay as they are, by id."""
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
    """Calls a layer with its kernels rounded to 8 bits; gradients pass as if they were not."""

    def __init__(self, layer, **kwargs):
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking

    def call(self, inputs):
        """The layer on its inputs, with rounded kernels."""
        kernels = [getattr(self.layer, name) for name in _KERNELS[type(self.layer)]]
        with keras_internals.without_autocast():  # In the type that they are kept in.
            rounded = [(each, round_to_8_bits(each)) for each in kernels]
        with keras.StatelessScope(state_mapping=rounded):
            return self.layer.call(inputs)

    def compute_mask(self, inputs, previous_mask=None):
        """That of the layer."""
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape):
        """That of the layer."""
        return self.layer.compute_output_shape(input_shape)


def round_to_8_bits(kernel):
    """A tensor rounded to k * max|tensor| / 127, whose gradient is that of the tensor."""
    kernel = keras.ops.convert_to_tensor(kernel)
    step = keras.ops.max(keras.ops.abs(kernel)) / 127
    safe = keras.ops.where(step > 0, step, keras.ops.ones_like(step))
    rounded = keras.ops.round(kernel / safe) * safe
    return kernel + keras.ops.stop_gradient(rounded - kernel)
