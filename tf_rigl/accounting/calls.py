"""A symbolic call of a model: what it is called on, and which layers it calls."""

import contextlib
import inspect
import numbers
import random
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import keras
from keras import layers

from tf_rigl._base import keras_internals
from tf_rigl.convert import copies
from tf_rigl.convert.sparsified import SparsifiedModel


class Call(NamedTuple):
    """One call of a layer, with the shapes that went in and came out."""

    layer: keras.layers.Layer
    arguments: dict  # Argument name -> list of shapes.
    output: tuple  # The shape of the first output.
    times: tuple  # How often it happens: the timesteps around it, None if unknown.

    @property
    def input(self):
        """The shape of the first input."""
        return next(iter(self.arguments.values()))[0]


class NotBuiltError(Exception):
    """A layer would create its weights during the symbolic call."""


def prepare(model, input_shape):
    """A built model, a copy if need be, and what to call it on.

    Args:
        model: a `keras.Model`.
        input_shape: see `tf_rigl.accounting.report`.

    Returns:
        The model (what a `SparsifiedModel` wraps), and a tuple of positional arguments,
        keyword arguments, and the batch size.

    Raises:
        ValueError: if `input_shape` is needed or does not fit, or the model is not built
            and cannot be copied.
    """
    if input_shape is not None:
        input_shape = _checked(input_shape)
    if isinstance(model, SparsifiedModel):
        model = model.model
    if not model.built:
        model = _build_copy(model, input_shape)
    if copies.is_graph(model):
        structure, _ = copies.ends(model)
        known = keras.tree.flatten(structure)
        given = _given(known, structure, input_shape)
        batch = next((x.shape[0] for x in known if x.shape and x.shape[0] is not None), 1)
        tensors = [
            keras.KerasTensor((batch, *shape) if x.shape else (), x.dtype, sparse=x.sparse)
            for x, shape in zip(known, given, strict=True)
        ]
        return model, ([keras.tree.pack_sequence_as(structure, tensors)], {}, batch)
    if input_shape is None:
        shapes = (model.get_build_config() or {}).get("input_shape")
        if shapes is None:
            raise ValueError(
                "Argument `input_shape` is needed: the model does not say what shape it was built "
                f"for. Received: input_shape=None, model={model!r}"
            )
        shapes = keras.tree.map_shape_structure(lambda s: tuple(s[1:]), shapes)
    else:
        shapes = input_shape
    return model, (*_symbolic_arguments(model, shapes, 1), 1)


def _symbolic_arguments(model, shapes, batch):
    """Arguments for a model without a graph, by name if `call` has arguments of the names."""

    def symbolic(shapes):
        return keras.tree.map_shape_structure(lambda s: keras.KerasTensor((batch, *s)), shapes)

    parameters = inspect.signature(model.call).parameters
    if isinstance(shapes, Mapping) and all(name in parameters for name in shapes):
        return [], {name: symbolic(shape) for name, shape in shapes.items()}
    return [symbolic(shapes)], {}


def _build_copy(model, input_shape):
    """A copy that is built, with the names of the original."""
    if input_shape is None:
        raise ValueError(
            "Argument `input_shape` is needed for a model that is not built: a tuple of integers "
            "without the batch axis, or a list or dict of them for several inputs. "
            f"Received: input_shape=None, model={model!r}"
        )
    state = random.getstate()  # Keras draws the seeds of initializers from it.
    try:
        copy = copies.clone(model)
        originals, twins = map(keras_internals.all_layers, (model, copy))
        if [type(layer) for layer in originals] == [type(layer) for layer in twins]:
            for original, twin in zip(originals, twins, strict=True):
                twin.name = original.name
        args, kwargs = _symbolic_arguments(copy, input_shape, None)
        with _silence():
            copy(*args, **kwargs)
    except copies.CannotCopyError as error:
        raise ValueError(
            "Argument `model` is not built, and Keras cannot clone it: call it on data first, or "
            f"give it `get_config` and `from_config`. Received: model={model!r} ({error})"
        ) from error
    except Exception as error:
        raise ValueError(
            "Argument `input_shape` must be a shape that the model can be built for, without the "
            f"batch axis. Received: input_shape={input_shape!r}; building failed: {error}"
        ) from error
    finally:
        random.setstate(state)
    return copy


def _checked(input_shape):
    """`input_shape` in tuples of Python integers, lists and dicts; or raises."""

    def convert(value):
        if isinstance(value, Mapping) and value:
            return {name: convert(each) for name, each in value.items()}
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if all(_is_size(n) for n in value):
            return tuple(int(n) for n in value)
        return [convert(each) for each in value]

    try:
        return convert(input_shape)
    except TypeError:
        raise ValueError(
            "Argument `input_shape` must be a tuple of positive integers without the batch axis, "
            "or a list or dict of such tuples for several inputs. "
            f"Received: input_shape={input_shape!r}"
        ) from None


def _is_size(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value > 0


def _given(known, structure, input_shape):
    """The shapes of the inputs of a graph, without the batch axis."""
    expected = [tuple(x.shape[1:]) for x in known]
    if input_shape is None:
        return expected
    if isinstance(input_shape, tuple):
        given = [input_shape]
    elif isinstance(input_shape, Mapping):
        names = list(structure) if isinstance(structure, Mapping) else [x.name for x in known]
        # Keras flattens a dict in the order of its sorted keys.
        names = sorted(names) if isinstance(structure, Mapping) else names
        given = [input_shape[n] for n in names] if set(names) == set(input_shape) else []
    else:
        given = input_shape
    fits = len(given) == len(expected) and all(
        isinstance(shape, tuple)
        and len(shape) == len(wanted)
        and all(w is None or n == w for n, w in zip(shape, wanted, strict=True))
        for shape, wanted in zip(given, expected, strict=True)
    )
    if not fits:
        allowed = {x.name: shape for x, shape in zip(known, expected, strict=True)}
        raise ValueError(
            "Argument `input_shape` does not fit the inputs of the model, which are (without the "
            f"batch axis) {allowed}. Received: input_shape={input_shape!r}"
        )
    return given


def observe(model, args, kwargs) -> list[Call]:
    """Calls a model symbolically, and returns the calls of the layers in it.

    Nothing is computed. Afterwards the model and its layers have the attributes that they
    had before.

    Args:
        model: a built `keras.Model`.
        args, kwargs: its arguments, `keras.KerasTensor` in any structure.

    Returns:
        A list of `Call`, one for each time that a layer is called. Layers inside
        recurrent ones are called once, with the number of timesteps in `times`.

    Raises:
        NotBuiltError: if a layer has no weights yet.
    """
    calls, times, paused = [], [], []

    def record(layer, call):
        signature = inspect.signature(call)

        def recording_call(*args, **kwargs):
            if paused:
                return call(*args, **kwargs)
            arguments = signature.bind(*args, **kwargs).arguments
            step = _one_step(layer, arguments)
            if step is None:
                outputs = call(*args, **kwargs)
                shapes = {name: _shapes(value) for name, value in arguments.items()}
                shapes = {name: value for name, value in shapes.items() if value}
                output = next(iter(_shapes(outputs)), ())
                calls.append(Call(layer, shapes, output, tuple(times)))
                return outputs
            # Keras traces the body of a loop as often as it likes, or leaves it to one
            # fused kernel: what happens at a timestep is watched outside of the loop.
            timesteps, run_step = step
            with _pushed(times, timesteps):
                run_step()
            with _pushed(paused, True):
                return call(*args, **kwargs)

        recording_call.__signature__ = signature
        return recording_call

    inner = list({id(layer): layer for layer in keras_internals.all_layers(model)}.values())
    before = [(layer, dict(vars(layer))) for layer in inner]
    unbuilt = []
    try:
        for layer in inner:
            attributes = vars(layer)
            if not layer.built:
                if keras_internals.has_default_build(layer):
                    attributes["built"] = True  # It has no weights of its own.
                else:
                    attributes["build"] = _refuse(layer, unbuilt)
            attributes["call"] = record(layer, layer.call)
        with _silence():
            keras_internals.compute_output_spec(model, *args, **kwargs)
    except Exception as error:
        if unbuilt:
            raise NotBuiltError(unbuilt[0].name) from error
        raise
    finally:
        for layer, attributes in before:
            vars(layer).clear()
            vars(layer).update(attributes)
    return calls


@contextlib.contextmanager
def _silence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # They belong to a call of the user's.
        yield


@contextlib.contextmanager
def _pushed(stack, value):
    stack.append(value)
    try:
        yield
    finally:
        stack.pop()


def _refuse(layer, unbuilt):
    def build(*args, **kwargs):
        del args, kwargs
        unbuilt.append(layer)
        raise NotBuiltError(layer.name)

    return build


def _one_step(layer, arguments):
    """The number of timesteps of a layer that loops over time, and a function of one.

    None for other layers.
    """
    inputs = next(iter(arguments.values()), None)
    if isinstance(layer, layers.RNN):
        states = layer.get_initial_state(batch_size=inputs.shape[0])
        return inputs.shape[1], lambda: layer.cell(inputs[:, 0], states)
    if isinstance(layer, layers.TimeDistributed):
        return inputs.shape[1], lambda: layer.layer(inputs[:, 0])
    return None


def _shapes(structure):
    tensors = [x for x in keras.tree.flatten(structure) if keras.ops.is_tensor(x)]
    # A tensor of unknown rank has no size in any axis.
    return [(None, None) if x.shape.rank is None else tuple(x.shape) for x in tensors]
