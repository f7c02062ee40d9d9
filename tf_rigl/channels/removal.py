"""Removal of channels: a smaller dense model that computes the same."""

import dataclasses
import inspect

import keras
import numpy as np

from tf_rigl._base import notices
from tf_rigl._base.keras_internals import (
    all_layers,
    history,
    nodes_in_order,
    set_own_trainable,
)
from tf_rigl.channels import axes, early_bird, rules, slimming
from tf_rigl.convert import copies
from tf_rigl.weights import maskable


def remove_channels(model, masks=None):
    """Makes a smaller dense model without the channels, units and weights that have no effect.

    A channel is removed if it is exactly zero for every input (masks prune it, it has no
    connections, or it depends only on such channels), or if no later layer uses it. The outputs
    are those of `mask_channels(model, masks)`, up to rounding.

    Layers joined by an addition or a multiplication, or by a layer that works channel by channel,
    keep the same channels: a channel that one of them needs stays in all. Attention, recurrent and
    grouped layers, shared layers with weights and layers of your own keep all their input and
    output channels. Channels can be last or first (`data_format`). The layers of nested models
    become layers of the new model. With masks, the L1 penalty on scales that `with_scale_penalty`
    adds is removed, because its work is done; other regularizers stay.

    Args:
        model: a built functional or Sequential `keras.Model`, dense (`tf_rigl.strip` makes a
            sparse model dense). It does not change.
        masks: dict of the path of a `BatchNormalization` layer to boolean array, from
            `channel_masks`. None: only channels that have no effect already are removed.

    Returns:
        A functional `keras.Model`, not compiled. Layers keep their names, inputs and outputs
        their shapes. Each layer keeps at least one channel.

    Raises:
        ValueError: if the model is not a graph of layers or is sparse, or the masks do not fit.

    Example:

    >>> model = tf_rigl.models.small_vgg((28, 28, 1), 10)
    >>> masks = {"norm_1": np.arange(32) < 8}  # After training: `channel_masks(model, 0.5)`.
    >>> small = tf_rigl.lottery.remove_channels(model, masks)
    >>> small.get_layer("conv_1").filters
    8
    >>> tuple(small.get_layer("conv_2").kernel.shape)
    (3, 3, 8, 32)

    Reference:

    - [Network slimming](https://arxiv.org/abs/1708.06519), section 3.
    """
    if not isinstance(model, keras.Model) or not copies.is_graph(model):
        raise ValueError(
            "Argument `model` must be a built functional or Sequential `keras.Model`. "
            f"Received: model={model!r}"
        )
    slimming.check_dense(model)
    if any(isinstance(each, early_bird.RoundedKernels) for each in all_layers(model)):
        raise ValueError(
            "Argument `model` must not be a `low_precision` copy in 'int8'. Copy its weights back "
            "with `model.set_weights(copy.get_weights())`; its channel masks fit the model too. "
            f"Received: model={model!r}"
        )
    names = [history(tensor).operation.name for tensor in model.inputs]
    if masks is not None:
        model = slimming.mask_channels(model, masks)
    graph = _Graph(model)
    kept = _kept_channels(graph)
    if masks is not None:
        _warn_if_all_stay(graph, kept, masks)
    ends = graph.rebuild(kept, names)
    small = keras.Model(*graph.structured(ends), name=model.name)
    if masks is not None:
        _remove_penalty(small)
    return small


def _warn_if_all_stay(graph, kept, masks):
    """Warns if masks prune channels, and not a single one can be removed."""
    if all(map(np.all, masks.values())) or not all(map(np.all, kept)):
        return
    unknown = (call.layer.name for call in graph.calls if type(call.rule) is rules.Rule)
    names = list(dict.fromkeys(map(repr, unknown)))
    reason = "other layers need them."
    if names:
        reason = f"these layers keep all channels around them: {', '.join(names[:5])}."
    notices.warn(f"No channel was removed, though the masks prune some: {reason}")


def _remove_penalty(model):
    """Removes the L1 penalty on the scales of batch normalisation."""
    for layer in all_layers(model):
        has_scale = isinstance(layer, keras.layers.BatchNormalization) and layer.scale
        if has_scale and isinstance(layer.gamma_regularizer, keras.regularizers.L1):
            # Keras saves the layer's regularizer and adds the variable's to the loss.
            layer.gamma_regularizer = layer.gamma.regularizer = None


@dataclasses.dataclass
class _Call:
    """A call of a layer; its tensors are given by number."""

    node: object  # The Keras node, which holds the arguments.
    inputs: list
    outputs: list
    training: bool | None  # Its own argument, or that of the nested model around it.
    rule: rules.Rule | None = None

    @property
    def layer(self):
        return self.node.operation


class _Graph:
    """The calls of all layers of a model, including those in nested models.

    Attributes:
        shapes: list of tuple, the shape of each tensor, the channels last.
        calls: list of `_Call`, each after the calls that it depends on.
        inputs, outputs: lists of int, numbers of tensors.
    """

    def __init__(self, model):
        self.model = model
        self.shapes, self.calls = [], []
        self.inputs = [self._add(tensor) for tensor in model.inputs]
        self.outputs = self._walk(model.inputs, model.outputs, self.inputs, None)
        layers = [id(call.layer) for call in self.calls]
        found, given = axes.find(self.calls, self.shapes), self.shapes
        self.shapes = [axes.channels_last(*pair) for pair in zip(given, found, strict=True)]
        for call in self.calls:
            shapes = ([self.shapes[n] for n in ends] for ends in (call.inputs, call.outputs))
            shared = layers.count(id(call.layer)) > 1 and not _is_plain(call.layer)
            # Constants among the inputs are not in the graph, so nothing is known of them.
            arguments = (call.node.arguments.args, call.node.arguments.kwargs)
            constants = len(_tensors(arguments)) > len(call.inputs)
            opaque = shared or constants or not axes.agree(call, given, found)
            first = axes.FIRST in [found[n] for n in call.inputs]
            call.rule = rules.rule(call.layer, *shapes, opaque, first)

    def _add(self, tensor):
        self.shapes.append(tuple(tensor.shape))
        return len(self.shapes) - 1

    def _walk(self, inputs, outputs, numbers, training):
        """Adds the calls between inputs and outputs, and returns the numbers of the outputs.

        Args:
            inputs, outputs: lists of symbolic tensors.
            numbers: list of int, the numbers of the inputs.
            training: bool or None, the argument that the model around them is called with.
        """
        function = keras.Function(inputs, outputs)
        found = dict(zip(map(id, function.inputs), numbers, strict=True))
        for node in nodes_in_order(function):
            if node.is_input or any(id(t) in found for t in node.outputs):
                continue
            given = [found[id(t)] for t in node.input_tensors]
            made = self._call(node, given, training)
            found.update(zip(map(id, node.outputs), made, strict=True))
        return [found[id(t)] for t in function.outputs]

    def _call(self, node, inputs, training):
        layer = node.operation
        own = node.arguments.kwargs.get("training")
        training = training if own is None else own
        if not isinstance(layer, keras.Model) or not copies.is_graph(layer):
            outputs = [self._add(tensor) for tensor in node.outputs]
            self.calls.append(_Call(node, inputs, outputs, training))
            return outputs
        numbers = dict(zip(map(id, node.input_tensors), inputs, strict=True))
        given = zip(self._given(node, layer), layer.inputs, strict=True)
        inputs = [self._converted(numbers[id(t)], t, wanted) for t, wanted in given]
        return self._walk(layer.inputs, layer.outputs, inputs, training)

    def _given(self, node, layer):
        """Returns the tensors that a nested model is called on, in the order of its inputs."""
        args, kwargs = node.arguments.args, dict(node.arguments.kwargs)
        given, *others = args if args else [kwargs.pop("inputs")]
        wanted, _ = copies.ends(layer)
        if isinstance(given, dict) and not isinstance(wanted, dict):
            given = [given[tensor.name] for tensor in layer.inputs]  # Keras ignores other keys.
        given = keras.tree.flatten(given)
        known = all(isinstance(each, keras.KerasTensor) for each in given)
        if not known or len(given) != len(layer.inputs) or _tensors((others, kwargs)):
            raise ValueError(
                "Argument `model` must call nested models on their inputs alone, and inputs must "
                f"not be constants. Received: model={self.model!r}, in which {layer.name!r} "
                f"is called on {len(_tensors((args, kwargs)))} tensors"
            )
        return given

    def _converted(self, number, given, wanted):
        """Converts a tensor to the dtype and rank of a nested model's input, as Keras does."""
        start = made = keras.KerasTensor(given.shape, given.dtype)
        if made.dtype != wanted.dtype:
            made = keras.ops.cast(made, wanted.dtype)
        more = len(made.shape) - len(wanted.shape)
        if more:
            made = (keras.ops.squeeze if more > 0 else keras.ops.expand_dims)(made, axis=-1)
        return number if made is start else self._walk([start], [made], [number], None)[0]

    def rebuild(self, kept, input_names):
        """Calls new layers that have the kept channels only; returns inputs and outputs."""
        tensors, made, names = {}, {}, set(input_names)
        for number, tensor, name in zip(self.inputs, self.model.inputs, input_names, strict=True):
            tensors[number] = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
        for call in self.calls:
            if id(call.layer) not in made:
                ends = ([kept[n] for n in numbers] for numbers in (call.inputs, call.outputs))
                made[id(call.layer)] = _smaller(call, *ends, names)
            new, fill = made[id(call.layer)]
            given = {
                id(old): tensors[n]
                for old, n in zip(call.node.input_tensors, call.inputs, strict=True)
            }
            args, kwargs = call.node.arguments.fill_in(given)
            if call.training is not None and _takes_training(call.layer):
                kwargs["training"] = call.training
            outputs = keras.tree.flatten(new(*args, **kwargs))
            tensors.update(zip(call.outputs, outputs, strict=True))
            fill()
        return [[tensors[n] for n in ends] for ends in (self.inputs, self.outputs)]

    def structured(self, ends):
        """Packs inputs and outputs into the structure that the model has."""
        return [
            keras.tree.pack_sequence_as(structure, tensors)
            for structure, tensors in zip(copies.ends(self.model), ends, strict=True)
        ]


def _kept_channels(graph):
    """Returns the channels of each tensor to keep: the fewest that leave the outputs exact."""
    zeros = [np.zeros(rules.channels(shape), bool) for shape in graph.shapes]
    kept = [each.copy() for each in zeros]
    for call in graph.calls:
        found = call.rule.zeros([zeros[n] for n in call.inputs])
        for number, zero in zip(call.outputs, found, strict=True):
            zeros[number] = zero
    for number in (*graph.inputs, *graph.outputs):
        kept[number][:] = True
    _spread(graph.calls, kept, zeros)
    while empty := [each for each in kept if not each.any()]:
        empty[-1][0] = True  # A layer has at least one channel.
        _spread(graph.calls, kept, zeros)
    return kept


def _spread(calls, kept, zeros):
    """Adds the channels that each call needs, until no call needs more."""
    before = None
    while before != (before := sum(map(np.count_nonzero, kept))):
        for call in reversed(calls):
            ends = ([kept[n] for n in numbers] for numbers in (call.inputs, call.outputs))
            call.rule.spread(*ends, [zeros[n] for n in call.inputs])


def _smaller(call, inputs, outputs, names):
    """Makes a layer with fewer channels, and a function that fills it once it is built."""
    layer = call.layer
    name = maskable.unique(layer.name, names)
    if not isinstance(layer, keras.layers.Layer):
        config = {**layer.get_config(), "name": name}
        return type(layer).from_config(config), lambda: None
    changes, values = call.rule.cut(inputs, outputs)
    new, copy = copies.twin(layer, **changes, name=name)
    if values is None:
        return new, copy

    def fill():
        for attribute, value in values.items():
            old, variable = getattr(layer, attribute), getattr(new, attribute)
            variable.assign(value)
            variable.trainable = old.trainable
        set_own_trainable(new, layer.trainable)

    return new, fill


def _takes_training(layer):
    """Returns True if an operation is a layer whose `call` has the argument `training`."""
    is_layer = isinstance(layer, keras.layers.Layer)
    return is_layer and "training" in inspect.signature(layer.call).parameters


def _tensors(arguments):
    """Lists the tensors and arrays in arguments, symbolic or not."""
    return [each for each in keras.tree.flatten(arguments) if hasattr(each, "shape")]


def _is_plain(layer):
    """Returns True if calls of an operation share nothing: no weights and no target shape."""
    is_layer = isinstance(layer, keras.layers.Layer)
    return not isinstance(layer, keras.layers.Reshape) and not (is_layer and layer.variables)
