"""Shared parts of all exports: the model to export, the check batch, and the check."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import notices
from tf_rigl._base.keras_internals import all_layers, input_signature
from tf_rigl.compaction import compacting
from tf_rigl.convert import copies, sparsifying
from tf_rigl.weights import maskable

_FREE_AXIS = 32  # The size that axes of free size have in the check batch.


def ordinary(model):
    """Returns the model to export: a sparse model is stripped, others are returned as they are.

    Raises:
        ValueError: if `model` is not a built `keras.Model`.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Argument `model` must be a `keras.Model`. "
            f"Received: model={model!r} (of type {type(model)})"
        )
    if not model.built:
        raise ValueError(
            "Argument `model` must be built before it is exported: call it on data first. "
            f"Received: model={model!r}"
        )
    if sparsifying.is_sparse(model):
        return _called(sparsifying.strip(model))
    if not has_zeros(model) and not compacting.is_compact(model):
        notices.warn(
            f"{model.name!r} is not a `tf_rigl.SparseModel` and has no zeros to remove: it is "
            "exported as it is.",
        )
    return _called(model)


def _called(model):
    """Returns a graph without what its class holds beside it, such as a tokenizer's tables."""
    if copies.is_graph(model) and not copies.is_plain_graph(model):
        return keras.Model(*copies.ends(model), name=model.name)
    return model


def has_zeros(model) -> bool:
    """Returns whether a maskable weight has more zeros than chance gives."""
    for found in maskable.find(model, include_self=False):
        values = found.weight.numpy()
        if values.size - np.count_nonzero(values) > max(1, 1e-3 * values.size):
            return True
    return False


def signature(model, data=None) -> list:
    """Returns the positional arguments of a model's call, as structures of `keras.InputSpec`.

    Args:
        model: a built `keras.Model`.
        data: a batch, or None. Of a model without a graph Keras knows the shapes of inputs, not
            the types, and takes them for floats: integers and booleans in the data correct that.
    """
    try:
        specs = input_signature(model)
        given = keras.tree.flatten(data)
        if copies.is_graph(model) or len(given) != len(keras.tree.flatten(specs)):
            return specs
        typed = map(_typed, keras.tree.flatten(specs), given)
        return keras.tree.pack_sequence_as(specs, list(typed))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Argument `model` cannot be exported: Keras does not know its inputs. First call it "
            f"on data, or build it as a functional model. ({error})"
        ) from error


def _typed(spec, array):
    """Returns a specification of floats with the type of data that are none."""
    kind = getattr(array, "dtype", None)
    kind = None if kind is None else keras.backend.standardize_dtype(kind)
    if kind in (None, "string") or keras.backend.is_float_dtype(kind):
        return spec
    return keras.InputSpec(shape=spec.shape, dtype=kind, name=spec.name)


def check_batch(model, size, seed=0) -> list:
    """Makes random inputs for a model; the same seed gives the same inputs.

    Args:
        model: a built `keras.Model`.
        size: int, the size of the batch axis if it is free.
        seed: int.

    Returns:
        The positional arguments of a call: floats from a standard normal distribution, and
        integers that are in the range of every `Embedding` of the model.
    """
    rng = np.random.default_rng(seed)
    layers = all_layers(model)
    limits = [each.input_dim for each in layers if isinstance(each, keras.layers.Embedding)]

    def draw(spec):
        first, *rest = spec.shape
        shape = (first or size, *(n or _FREE_AXIS for n in rest))
        if keras.backend.is_int_dtype(spec.dtype):
            return rng.integers(0, min(limits, default=2), shape).astype(spec.dtype)
        if spec.dtype == "bool":
            return rng.random(shape) < 0.5
        if not keras.backend.is_float_dtype(spec.dtype):
            raise ValueError(
                f"No random check batch can have dtype {spec.dtype}: pass one as `check_data`."
            )
        return rng.standard_normal(shape).astype(spec.dtype)

    return keras.tree.map_structure(draw, signature(model))


def write(archive, folder):
    """Writes a `keras.export.ExportArchive`.

    Raises:
        OSError: if TensorFlow cannot write it, in place of TensorFlow's own error.
    """
    try:
        with without_notices():
            archive.write_out(str(folder), verbose=False)
    except tf.errors.OpError as error:
        raise OSError(f"The SavedModel cannot be written: {error.message}") from error


def call(model, *arguments):
    """Calls a model, or a function that calls it, on a check batch.

    Raises:
        ValueError: if the model does not accept the inputs.
    """
    try:
        return model(*arguments)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"The model cannot be called on the check batch: pass `check_data` that it accepts. "
            f"({error.message})"
        ) from error


def check_outputs(expected, received, tolerance, least=1.0) -> float:
    """Returns the largest difference between outputs, or raises if it is too large.

    Args:
        expected: structure of arrays, the outputs of the Keras model.
        received: list of arrays, the outputs of the exported model, in the same order.
        tolerance: float, the allowed difference, as a fraction of the largest magnitude in
            the expected output.
        least: float, the smallest magnitude to take that fraction of.

    Raises:
        ValueError: if outputs differ in number or shape, or by more than is allowed.
    """
    expected = [keras.ops.convert_to_numpy(x) for x in keras.tree.flatten(expected)]
    shapes = [x.shape for x in expected], [np.shape(x) for x in received]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "The exported model must have the Keras model's outputs, of shapes "
            f"{shapes[0]}. Received: shapes {shapes[1]}"
        )
    worst = 0.0
    for ours, theirs in zip(expected, received, strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        differ = (ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))
        error = float(np.max(np.abs(ours[differ] - theirs[differ]), initial=0))
        largest = np.max(np.abs(ours), initial=0, where=np.isfinite(ours))
        allowed = tolerance * max(least, float(largest))
        if not error <= allowed:
            raise ValueError(
                "The exported model does not reproduce the model's outputs: the largest "
                f"difference must be at most {allowed:.3g}. Received: {error:.3g}"
            )
        worst = max(worst, error)
    return worst


@contextlib.contextmanager
def without_notices():
    """Silences TensorFlow's notice of the folder it writes, which is renamed afterwards."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)
