"""Calls a model symbolically, and records the calls of its layers."""

import contextlib
import inspect
import warnings
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import layers

from tf_rigl._base import keras_internals


class Call(NamedTuple):
    """One call of a layer, with the shapes of its inputs and its output."""

    layer: keras.layers.Layer
    arguments: dict  # Argument name -> list of shapes.
    output: tuple  # The shape of the first output.
    times: tuple  # The timesteps of each loop around it; None if unknown.
    operations: tuple = ()  # `tf.Operation`s of the layer itself, without those of its sublayers.

    @property
    def input(self):
        """Returns the shape of the first input."""
        return next(iter(self.arguments.values()))[0]


class Trace(NamedTuple):
    """A symbolic call of a model."""

    calls: list  # `Call`, one for each call of a layer.
    operations: list  # All `tf.Operation`s, each after those that it depends on.
    inputs: list  # The tensors that the model is called on.
    stand_ins: dict  # id(variable) -> the tensor in its place.
    looped: (
        frozenset  # The names of operations of loops, of which one timestep is in the trace too.
    )


class NotBuiltError(Exception):
    """The symbolic call reached a layer that has no weights yet."""


def trace(model, args, kwargs, variables=()) -> Trace:
    """Calls a model symbolically, and records the calls of its layers.

    Nothing is computed. The attributes of the model and its layers are restored afterwards.

    Args:
        model: a built `keras.Model` or layer.
        args, kwargs: its arguments, `keras.KerasTensor` in any structure.
        variables: iterable of `keras.Variable` to put stand-ins in the place of.

    Returns:
        A `Trace`. A layer inside a recurrent layer is called once, and `times` holds the number
        of timesteps.

    Raises:
        NotBuiltError: if a layer has no weights yet.
    """
    inner = list({id(layer): layer for layer in keras_internals.all_layers(model)}.values())
    before = [(layer, dict(vars(layer))) for layer in inner]
    unbuilt: list = []
    recorder = _Recorder()

    def run(*args, **kwargs):
        recorder.begin(args, kwargs, variables)
        if not variables:
            return model(*args, **kwargs)
        pairs = [(variable, recorder.stand_ins[id(variable)]) for variable in variables]
        with keras.StatelessScope(pairs):
            return model(*args, **kwargs)

    try:
        for layer in inner:
            attributes = vars(layer)
            if not layer.built:
                if keras_internals.has_default_build(layer):
                    attributes["built"] = True  # The layer has no weights of its own.
                else:
                    attributes["build"] = _refuse_to_build(layer, unbuilt)
            attributes["call"] = recorder.recording(layer, layer.call)
        with silence():
            keras_internals.compute_output_spec(run, *args, **kwargs)
    except Exception as error:
        if unbuilt:
            raise NotBuiltError(unbuilt[0].name) from error
        raise
    finally:
        for layer, attributes in before:
            vars(layer).clear()
            vars(layer).update(attributes)
    return recorder.result()


class _Recorder:
    """Records the calls of layers while a model is called."""

    def __init__(self):
        self.calls, self.graph, self.inputs, self.stand_ins = [], None, [], {}
        self._times, self._paused = [], []
        # For each call that runs: the stretches of the graph that belong to calls inside it.
        self._inside, self._loops = [[]], []

    def begin(self, args, kwargs, variables):
        self.graph = tf.compat.v1.get_default_graph()
        self.inputs = _tensors((args, kwargs))
        self.stand_ins = {
            id(each): tf.compat.v1.placeholder(each.dtype, tuple(each.shape)) for each in variables
        }

    def result(self):
        operations = self.graph.get_operations()

        def own(stretch):
            if stretch is None:
                return ()
            start, end, inside = stretch
            taken = {n for first, last in inside for n in range(first, last)}
            return tuple(operations[n] for n in range(start, end) if n not in taken)

        calls = [call._replace(operations=own(call.operations)) for call in self.calls]
        looped = {operations[n].name for start, end, _ in self._loops for n in range(start, end)}
        return Trace(calls, operations, self.inputs, self.stand_ins, frozenset(looped))

    def recording(self, layer, call):
        """Returns a function that does the same as a layer's `call`, and records it."""
        signature = inspect.signature(call)

        def recording_call(*args, **kwargs):
            if self._paused:
                return call(*args, **kwargs)
            arguments = signature.bind(*args, **kwargs).arguments
            step = _one_step(layer, arguments)
            if step is not None:
                # Keras may trace the body of a loop several times, or run it as one fused
                # kernel. So one timestep is recorded outside the loop.
                timesteps, run_step, states = step
                if self._is_outside():
                    self.inputs += _tensors(states)  # They depend on the steps before.
                with self._stretch():
                    with _pushed(self._times, timesteps):
                        run_step()
                    with self._stretch() as loop, _pushed(self._paused, True):
                        outputs = call(*args, **kwargs)
                self._loops += [tuple(loop)] if loop else []
                return outputs
            with self._stretch() as stretch:
                outputs = call(*args, **kwargs)
            shapes = {name: _shapes(value) for name, value in arguments.items()}
            shapes = {name: value for name, value in shapes.items() if value}
            output = next(iter(_shapes(outputs)), ())
            stretch = tuple(stretch) or None
            self.calls.append(Call(layer, shapes, output, tuple(self._times), stretch))
            return outputs

        recording_call.__signature__ = signature
        return recording_call

    @contextlib.contextmanager
    def _stretch(self):
        """Yields a list that becomes start, end and what is inside; empty in another graph."""
        found = []
        if not self._is_outside():
            yield found
            return
        start = self._size()
        self._inside.append([])
        try:
            yield found
        finally:
            inside, end = self._inside.pop(), self._size()
            self._inside[-1].append((start, end))
            found += [start, end, inside]

    def _is_outside(self):
        """Returns False within a function or a loop, which have graphs of their own."""
        return tf.compat.v1.get_default_graph() is self.graph

    def _size(self):
        return len(self.graph.get_operations())


@contextlib.contextmanager
def silence():
    """Returns a context without warnings: the user's own call shows them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _pushed(stack, value):
    stack.append(value)
    try:
        yield
    finally:
        stack.pop()


def _refuse_to_build(layer, unbuilt):
    def build(*args, **kwargs):
        del args, kwargs
        unbuilt.append(layer)
        raise NotBuiltError(layer.name)

    return build


def _one_step(layer, arguments):
    """Returns the number of timesteps, a function that runs one, and the states it begins with.

    Returns None for layers that do not loop over time.
    """
    inputs = next(iter(arguments.values()), None)
    if isinstance(layer, layers.RNN):
        states = layer.get_initial_state(batch_size=inputs.shape[0])
        return inputs.shape[1], lambda: layer.cell(inputs[:, 0], states), states
    if isinstance(layer, layers.TimeDistributed):
        return inputs.shape[1], lambda: layer.layer(inputs[:, 0]), ()
    return None


def _tensors(structure):
    """Returns the tensors in a structure; of a sparse one, its parts."""
    flat = tf.nest.flatten(keras.tree.flatten(structure), expand_composites=True)
    return [each for each in flat if tf.is_tensor(each)]


def _shapes(structure):
    tensors = [x for x in keras.tree.flatten(structure) if keras.ops.is_tensor(x)]
    # For a tensor of unknown rank: two axes without a size.
    return [(None, None) if x.shape.rank is None else tuple(x.shape) for x in tensors]
