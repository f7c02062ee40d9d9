"""Symbolic arguments to call a model on."""

import inspect
import numbers
import random
from collections.abc import Mapping

import keras

from tf_rigl._base import keras_internals
from tf_rigl.convert import copies
from tf_rigl.convert.sparsified import SparsifiedModel
from tf_rigl.weights import maskable, tracing


def prepare(model, input_shape):
    """Returns a built model and symbolic arguments for it.

    A model that is not built is copied, and the copy is built.

    Args:
        model: a `keras.Model`.
        input_shape: see `tf_rigl.accounting.report`.

    Returns:
        The model (without its `SparsifiedModel` wrapper), and a tuple of positional arguments,
        keyword arguments and the batch size. For a model without `call`, such as a GAN, a list
        of such results for the networks in it.

    Raises:
        ValueError: if `input_shape` is missing or does not fit, or the model is not built
            and cannot be copied.
    """
    if input_shape is not None:
        input_shape = _checked_shape(input_shape)
    if isinstance(model, SparsifiedModel):
        model = model.model
    if type(model).call is keras.Model.call:
        return model, _parts(model, input_shape)
    if not model.built:
        model = _build_copy(model, input_shape)
    if copies.is_graph(model):
        structure, _ = copies.ends(model)
        inputs = keras.tree.flatten(structure)
        shapes = _graph_shapes(inputs, structure, input_shape)
        batch = next((x.shape[0] for x in inputs if x.shape and x.shape[0] is not None), 1)
        tensors = [
            keras.KerasTensor((batch, *shape) if x.shape else (), x.dtype, sparse=x.sparse)
            for x, shape in zip(inputs, shapes, strict=True)
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


def _parts(model, input_shape):
    """Returns the results of `prepare` for the networks in a model without `call`."""
    parts = [layer for layer in maskable.sublayers(model) if layer.weights]
    if not parts or input_shape is not None or not all(map(copies.is_graph, parts)):
        raise ValueError(
            f"{type(model).__name__} defines no `call`, so its cost is that of the networks in it. "
            "They must be built functional or Sequential models, and `input_shape` must be None. "
            f"Received: input_shape={input_shape}, model={model!r}, which holds {parts}"
        )
    return [prepare(part, None) for part in parts]


def _symbolic_arguments(model, shapes, batch):
    """Returns symbolic arguments for a model without a graph.

    A dict of shapes becomes keyword arguments if `call` has arguments of these names.
    """

    def symbolic(shapes):
        return keras.tree.map_shape_structure(lambda s: keras.KerasTensor((batch, *s)), shapes)

    parameters = inspect.signature(model.call).parameters
    if isinstance(shapes, Mapping) and all(name in parameters for name in shapes):
        return [], {name: symbolic(shape) for name, shape in shapes.items()}
    return [symbolic(shapes)], {}


def _build_copy(model, input_shape):
    """Returns a built copy whose layers have the names of the original's."""
    if input_shape is None:
        raise ValueError(
            "Argument `input_shape` is needed for a model that is not built: a tuple of integers "
            "without the batch axis, or a list or dict of them for several inputs. "
            f"Received: input_shape=None, model={model!r}"
        )
    state = random.getstate()  # Keras draws initializer seeds from `random`.
    try:
        copy = copies.clone(model)
        originals, twins = map(keras_internals.all_layers, (model, copy))
        if [type(layer) for layer in originals] == [type(layer) for layer in twins]:
            for original, twin in zip(originals, twins, strict=True):
                twin.name = original.name
        args, kwargs = _symbolic_arguments(copy, input_shape, None)
        with tracing.silence():
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


def _checked_shape(input_shape):
    """Returns `input_shape` as tuples of Python integers in lists and dicts, or raises."""

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


def _graph_shapes(inputs, structure, input_shape):
    """Returns the shapes to call a graph on, without the batch axis.

    Args:
        inputs: list of `keras.KerasTensor`, the inputs of the graph.
        structure: the same inputs in the structure that the graph takes.
        input_shape: checked shapes from the user, or None for those of the inputs.
    """
    expected = [tuple(x.shape[1:]) for x in inputs]
    if input_shape is None:
        return expected
    if isinstance(input_shape, tuple):
        given = [input_shape]
    elif isinstance(input_shape, Mapping):
        names = list(structure) if isinstance(structure, Mapping) else [x.name for x in inputs]
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
        allowed = {x.name: shape for x, shape in zip(inputs, expected, strict=True)}
        raise ValueError(
            "Argument `input_shape` does not fit the inputs of the model. Their shapes without the "
            f"batch axis are {allowed}. Received: input_shape={input_shape!r}"
        )
    return given
