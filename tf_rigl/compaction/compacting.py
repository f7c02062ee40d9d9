"""`compact`: an ordinary model that stores and computes only the blocks that are there."""

import weakref

import keras

from tf_rigl._base import registry, tables
from tf_rigl._base.arguments import unknown_name
from tf_rigl._base.keras_internals import Functional, all_layers
from tf_rigl.compaction import examining
from tf_rigl.convert import copies
from tf_rigl.convert.sparsified import SparsifiedModel
from tf_rigl.training.sparse_model import SparseModel
from tf_rigl.weights import masks

_COMPACT: weakref.WeakSet = weakref.WeakSet()  # The models that `compact` has made.


def compact(model, *, form="auto", verbose=False, quantization=None):
    """Makes an ordinary Keras model that stores and computes only the blocks that are there.

    Where the zeros of a kernel form blocks of at least 16 outputs, each group of outputs needs
    only some of the inputs. The compact model gathers these inputs and multiplies them by what
    is there, with layers and operations of Keras alone. So it is small and fast in training, in
    LiteRT, ONNX and everywhere else where a Keras model runs, without any support for sparse
    tensors. A layer in which nothing is gained stays dense.

    Args:
        model: a `tf_rigl.SparseModel` with blocks, such as `pattern="channels_1x32"` or
            `"block_32x32"`, masked or with `compute="sparse"`; or an ordinary model whose zeros
            form blocks, such as the result of `tf_rigl.strip`. It must be a graph of layers.
        form: str, how layers compute: "matmul" (inputs are gathered for one batched product),
            "split" (an ordinary layer for each group of outputs), "grouped" (one convolution
            with groups); or "auto", for each layer the one that is fastest.
        verbose: bool, whether to print a table of all layers: the form, or why a layer stays
            dense.
        quantization: None, or what the model will become in LiteRT, where other forms are fast:
            "float32", "float16", "dynamic" or "int8". It changes nothing but the choice.
            (Convolutions with groups are the fastest there, and slow to train.)

    Returns:
        A `keras.Model` with the same outputs to float tolerance. Each compact layer is a small
        model of the layer's name, and so is attention with compact projections.

    Raises:
        ValueError: if `model` is no graph of layers, no layer has blocks that pay (the message
            says why, layer by layer), or weights are not zero where their masks are 0.

    Example:

    >>> inputs = keras.Input((64,))
    >>> hidden = keras.layers.Dense(128, activation="relu", name="hidden")(inputs)
    >>> wide = keras.Model(inputs, keras.layers.Dense(4)(hidden))
    >>> sparse = tf_rigl.sparsify(wide, sparsity=0.75, pattern="block_16x32", seed=0)
    >>> small = tf_rigl.compact(sparse)
    >>> small.get_layer("hidden").count_params() < 0.3 * 64 * 128 + 128
    True
    """
    if quantization is not None and quantization not in registry.TARGETS:
        raise unknown_name("quantization", quantization, registry.TARGETS, or_object=False)
    if form not in registry.FORMS:
        raise unknown_name("form", form, registry.FORMS, or_object=False)
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Argument `model` must be a `keras.Model`. "
            f"Received: model={model!r} (of type {type(model)})"
        )
    masks.check_strays(masks.find(model), "compacted")
    small, entries = required(model, form, quantization)
    if verbose:
        print(table(entries))
    _COMPACT.add(small)
    return small


def is_compact(model) -> bool:
    """Returns whether `compact` has made a model in this process."""
    return model in _COMPACT


def required(model, form="auto", quantization=None):
    """Returns what `attempt` does, but raises if no layer gains.

    Args:
        model, form, quantization: as in `compact`.

    Raises:
        ValueError: as in `compact`.
    """
    try:
        small, entries = attempt(model, form, quantization)
    except copies.CannotCopyError as error:
        raise ValueError(
            f"{model.name!r} cannot be made compact: Keras cannot clone a model or layer in it. "
            f"Give it `get_config` and `from_config`. ({error})"
        ) from error
    if small is None:
        where = f" with quantization={quantization!r}" if quantization else ""
        raise ValueError(
            f"Argument `model` has no layer of which a compact form is faster{where}. Train it "
            "with blocks, such as `pattern='channels_1x32'` or 'block_32x32', at a sparsity of 0.7 "
            f"or more.\n{table(entries)}"
        )
    return small, entries


def attempt(model, form="auto", quantization=None):
    """Returns the compact model, or None if no layer gains; and the `Entry` of each layer.

    Args:
        model, form, quantization: as in `compact`.

    Raises:
        ValueError: as in `compact`, but not if no layer gains.
        CannotCopyError: if Keras cannot clone the model.
    """
    weights = masks.find(model)
    with model.distribute_strategy.scope():
        graph = _graph(model)
        entries = examining.examine(graph, form, quantization, weights)
        if all(entry.part is None for entry in entries):
            return None, entries
        copies.check_sharing(graph)
        return copies.try_copy(graph, examining.makers(graph, entries), exact=False), entries


def can_be_tried(model) -> bool:
    """Returns whether a model is a graph of layers, so that `attempt` can look for blocks."""
    try:
        _graph(model)
    except ValueError:
        return False
    return True


def forms(model) -> list:
    """Returns the `Entry` of each layer in LiteRT, without making anything.

    There are none if the model is no graph of layers.
    """
    if not can_be_tried(model):
        return []
    return examining.examine(_graph(model), "auto", "float32", masks.find(model))


def _graph(model):
    """Returns a model as a plain graph of layers."""
    inner = model.model if isinstance(model, SparsifiedModel) else model
    nested = [each for each in all_layers(inner, include_self=False) if _is_sparse(each)]
    if not copies.is_graph(inner) or nested:
        what = f"the sparse model {nested[0].name!r} in it" if nested else "a `call` of its own"
        raise ValueError(
            "Argument `model` must be a graph of layers, functional or Sequential, and built. "
            f"Received: model={model!r}, with {what}. Compact the graphs in it by themselves"
            f"{', or strip it first' if nested else ''}."
        )
    if isinstance(inner, SparseModel) or not isinstance(inner, Functional):
        return keras.Model(*copies.ends(inner), name=model.name)
    return inner


def _is_sparse(layer):
    return isinstance(layer, SparseModel)


def table(entries) -> str:
    """Returns a table of the layers and their forms."""
    rows = []
    for entry in entries:
        part = entry.part
        blocks = f"{part.columns.rows}x{part.columns.width}" if part else ""
        density = f"{part.columns.density:.3f}" if part else ""
        rows.append((entry.path, entry.form, blocks, density, entry.reason))
    return "\n".join(
        tables.text(("layer", "form", "blocks", "density", "why"), rows, left={0, 1, 4})
    )
