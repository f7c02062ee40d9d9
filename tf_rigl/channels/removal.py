"""Channels removed for real: a smaller dense model that computes the same."""

import dataclasses
import inspect

import keras
import numpy as np

from tf_rigl._base.keras_internals import (
    all_layers,
    history,
    nodes_in_order,
    set_own_trainable,
)
from tf_rigl.channels import early_bird, rules, slimming
from tf_rigl.convert import copies
from tf_rigl.weights import maskable


def remove_channels(model, masks=None):
    """A smaller dense model without the channels, units and weights that change nothing.

    Removed is what is exactly zero for every input (channels that masks prune, units without
    connections, and what follows from them), and what no later layer looks at. The outputs are
    those of `mask_channels(model, masks)`, to rounding.

    Layers joined by an addition or a multiplication, or by a layer that works channel by channel,
    keep the same channels: one that any of them needs stays in all. Attention, recurrent and
    grouped layers, shared layers with weights and layers of your own keep all channels that come
    in and go out. Nested models are dissolved. An L1 penalty on the scales of batch normalisation,
    as `with_scale_penalty` sets it, has done its work where masks are given, and is left out;
    other regularizers stay.

    Args:
        model: a built functional or Sequential `keras.Model`, dense (`tf_rigl.strip` makes one
            of a sparse model). It is left as it is.
        masks: dict of the path of a `BatchNormalization` layer to boolean array, from
            `channel_masks`. None: only what is zero already is removed.

    Returns:
        A functional `keras.Model`, to be compiled. Layers keep their names, inputs and outputs
        their shapes. A layer keeps at least one channel.

    Raises:
        ValueError: if the model is no graph of layers or is sparse, or the masks do not fit.

    Example:

    >>> masks = tf_rigl.lottery.channel_masks(slim, prune_fraction=0.5)
    >>> small = tf_rigl.lottery.remove_channels(slim, masks)
    >>> small.count_params() < slim.count_params()
    True

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
            "Argument `model` must not be a `low_precision` copy in 'int8'. Bring its weights back "
            "with `model.set_weights(copy.get_weights())`; its channel masks fit the model too. "
            f"Received: model={model!r}"
        )
    names = [history(tensor).operation.name for tensor in model.inputs]
    if masks is not None:
        model = slimming.mask_channels(model, masks)
    graph = _Graph(model)
    kept = _kept_channels(graph)
    ends = graph.rebuild(kept, names)
    small = keras.Model(*graph.structured(ends), name=model.name)
    if masks is not None:
        _without_penalty(small)
    return small


def _without_penalty(model):
    """Takes the L1 penalty from the scales of batch normalisation."""
    for layer in all_layers(model):
        has_scale = isinstance(layer, keras.layers.BatchNormalization) and layer.scale
        if has_scale and isinstance(layer.gamma_regularizer, keras.regularizers.L1):
            # The layer's own is what is saved, the variable's what is added to the loss.
            layer.gamma_regularizer = layer.gamma.regularizer = None


@dataclasses.dataclass
class _Call:
    """A call of a layer; tensors are numbers."""

    node: object  # Of Keras, which knows the arguments.
    inputs: list
    outputs: list
    training: bool | None  # What the nested model that it was in was called with.
    rule: rules.Rule | None = None

    @property
    def layer(self):
        return self.node.operation


class _Graph:
    """The layers of a model as they are called, those of nested models among the others.

    Attributes:
        shapes: list, of each tensor.
        calls: list of `_Call`, each after those that it depends on.
        inputs, outputs: lists of int, tensors.
    """

    def __init__(self, model):
        self.model = model
        self.shapes, self.calls = [], []
        self.inputs = [self._add(tensor) for tensor in model.inputs]
        self.outputs = self._walk(model.inputs, model.outputs, self.inputs, None)
        layers = [id(call.layer) for call in self.calls]
        for call in self.calls:
            shapes = ([self.shapes[n] for n in ends] for ends in (call.inputs, call.outputs))
            shared = layers.count(id(call.layer)) > 1 and not _is_plain(call.layer)
            # Of a constant among the inputs the graph knows nothing.
            arguments = (call.node.arguments.args, call.node.arguments.kwargs)
            constants = len(_tensors(arguments)) > len(call.inputs)
            call.rule = rules.rule(call.layer, *shapes, opaque=shared or constants)

    def _add(self, tensor):
        self.shapes.append(tuple(tensor.shape))
        return len(self.shapes) - 1

    def _walk(self, inputs, outputs, numbers, training):
        """Adds the calls between some tensors and others, and returns the numbers of these.

        Args:
            inputs, outputs: lists of symbolic tensors.
            numbers: list of int, the inputs.
            training: bool or None, what the model that they are of is called with.
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
        """The tensors that a nested model is called on, in the order of its inputs."""
        args, kwargs = node.arguments.args, dict(node.arguments.kwargs)
        given, *others = args if args else [kwargs.pop("inputs")]
        wanted, _ = copies.ends(layer)
        if isinstance(given, dict) and not isinstance(wanted, dict):
            given = [given[tensor.name] for tensor in layer.inputs]  # Keras ignores others.
        given = keras.tree.flatten(given)
        known = all(isinstance(each, keras.KerasTensor) for each in given)
        if not known or len(given) != len(layer.inputs) or _tensors((others, kwargs)):
            raise ValueError(
                "Argument `model` must call nested models on their inputs, which are no constants, "
                f"and on no other tensor. Received: model={self.model!r}, in which {layer.name!r} "
                f"is called on {len(_tensors((args, kwargs)))} tensors"
            )
        return given

    def _converted(self, number, given, wanted):
        """A tensor as Keras makes it fit an input of a nested model: in its type and rank."""
        start = made = keras.KerasTensor(given.shape, given.dtype)
        if made.dtype != wanted.dtype:
            made = keras.ops.cast(made, wanted.dtype)
        more = len(made.shape) - len(wanted.shape)
        if more:
            made = (keras.ops.squeeze if more > 0 else keras.ops.expand_dims)(made, axis=-1)
        return number if made is start else self._walk([start], [made], [number], None)[0]

    def rebuild(self, kept, input_names):
        """Calls new layers of the channels that are kept, and returns inputs and outputs."""
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
        """Inputs and outputs in the structure that the model has them in."""
        return [
            keras.tree.pack_sequence_as(structure, tensors)
            for structure, tensors in zip(copies.ends(self.model), ends, strict=True)
        ]


def _kept_channels(graph):
    """The channels to keep of each tensor: the fewest with which all that is left is exact."""
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
        empty[-1][0] = True  # There are no layers of nothing.
        _spread(graph.calls, kept, zeros)
    return kept


def _spread(calls, kept, zeros):
    """Lets every call ask for what it needs until none asks for more."""
    before = None
    while before != (before := sum(map(np.count_nonzero, kept))):
        for call in reversed(calls):
            ends = ([kept[n] for n in numbers] for numbers in (call.inputs, call.outputs))
            call.rule.spread(*ends, [zeros[n] for n in call.inputs])


def _smaller(call, inputs, outputs, names):
    """A layer for a call with fewer channels, and a function that fills it when it is built."""
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
    """Whether a layer, or another operation in a graph, is a layer with that argument."""
    is_layer = isinstance(layer, keras.layers.Layer)
    return is_layer and "training" in inspect.signature(layer.call).parameters


def _tensors(arguments):
    """The tensors and arrays in arguments, symbolic or not."""
    return [each for each in keras.tree.flatten(arguments) if hasattr(each, "shape")]


def _is_plain(layer):
    """Whether calls of a layer have nothing to share: no weights, no sizes of their own."""
    is_layer = isinstance(layer, keras.layers.Layer)
    return not isinstance(layer, keras.layers.Reshape) and not (is_layer and layer.variables)
