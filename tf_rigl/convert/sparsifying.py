"""`sparsify` and `strip`: from an ordinary Keras model to a sparse one, and back."""

import functools
import math
import warnings
from collections.abc import Mapping

import keras
import numpy as np

from tf_rigl import methods, patterns
from tf_rigl._base.arguments import check_sparsity, unknown_name
from tf_rigl._base.keras_internals import Functional, all_layers
from tf_rigl._base.workers import resolve_seed
from tf_rigl.block_sparse import conversion
from tf_rigl.convert import copies
from tf_rigl.convert.sparsified import SparsifiedGraph, SparsifiedModel
from tf_rigl.training.sparse_model import SparseModel
from tf_rigl.weights import maskable, targets
from tf_rigl.weights.masks import Masks

# The default sparsity, told apart from the same number given by the caller.
_LEFT_OUT = type("Default", (float,), {})(0.9)
# What a subclass of `keras.Model` may define, and a sparse copy of it does not take over.
_STEPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def sparsify(
    model,
    method="rigl",
    sparsity=_LEFT_OUT,
    distribution="erk",
    pattern="unstructured",
    exclude=(),
    seed=None,
    *,
    fixed=None,
    compute="masked",
):
    """Makes a sparse model of a Keras model; the rest is plain Keras.

    Args:
        model: a `keras.Model`: Sequential, functional or subclassed, built or not. It is
            left as it is; a subclassed model that Keras cannot clone is changed in
            place, with a warning. Weights already trained are kept where the mask is 1.
        method: str or `tf_rigl.methods.Method`, how masks begin and change: "static",
            "set", "rigl", "snfs", "snip", "magnitude", "edge_popup".
        sparsity: float in [0, 1), zeros over all maskable entries of the whole model.
            Defaults to 0.9, or to where the schedule of `MagnitudePruning` ends.
        distribution: "uniform" (the first layer stays dense), "erdos_renyi", "erk"; a
            function with the signature of `tf_rigl.distributions.erdos_renyi`; or a
            mapping of layer name to sparsity, in which case `sparsity` is not used
            and layers that it does not name stay dense.
        pattern: str or `tf_rigl.patterns.Pattern`, which entries live and die
            together: "unstructured"; "block_16x1" or other blocks of inputs by outputs;
            "2:4" or other n:m; "litert", what LiteRT runs fast in each layer.
        exclude: list or tuple of str, layers kept dense. Each is the name (or the path,
            such as "encoder/dense") of a layer, or else a regular expression that is
            searched for in names and paths.
        seed: int, for masks and whatever the method draws at random. Defaults to one
            drawn from Python's `random`, which `keras.utils.set_random_seed` seeds.
        fixed: mapping of layer name (or path) to sparsity: layers that are to have
            exactly that one. The distribution balances the others among themselves.
        compute: "masked": zeros are stored and multiplied like any number. "sparse": with a
            pattern of blocks, the layers that can store and compute only the blocks
            that are there, each column of blocks as many: see `tf_rigl.block_sparse`.
            `tf_rigl.report` says which layers do.

    Returns:
        A `tf_rigl.SparseModel`, to be compiled.

    Raises:
        ValueError: before any training, if an argument is out of range or names what is
            not there, or if the model has nothing to mask.

    Example:

    >>> layers = [keras.Input((784,)), keras.layers.Dense(300), keras.layers.Dense(10)]
    >>> model = keras.Sequential(layers)
    >>> sparse = tf_rigl.sparsify(model, method="rigl", sparsity=0.9, seed=0)
    >>> round(sparse.sparsity, 3)
    0.9

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3.
    """
    if not isinstance(model, keras.Model):
        legacy = any(cls.__module__.startswith("tf_keras") for cls in type(model).__mro__)
        hint = (
            "This one is of Keras 2 (`tf_keras`); one that tensorflow-model-optimization has "
            "pruned is taken over by `tf_rigl.interop.from_tfmot`. "
        )
        raise ValueError(
            f"Argument `model` must be a `keras.Model`. {hint if legacy else ''}"
            f"Received: model={model!r} (of type {type(model)})"
        )
    if is_sparse(model):
        raise ValueError(
            "Argument `model` is sparse already. `tf_rigl.strip` makes an ordinary model of it. "
            f"Received: model={model!r}"
        )
    method = methods.get(method)
    pattern = patterns.get(pattern)
    if compute not in ("masked", "sparse"):
        raise unknown_name("compute", compute, ("masked", "sparse"), or_object=False)
    if compute == "sparse":
        pattern = conversion.check(pattern, method)
    if method.scope == "global" and pattern.constant_fan_in:
        raise ValueError(
            "Argument `pattern` must not be one of a constant fan-in with `scope='global'`, in "
            "which each weight has as many blocks as are among the best of all. Received: "
            f"pattern={pattern!r}, method={method!r}"
        )
    targets.check_distribution(distribution)
    targets.check_exclude(exclude)
    targets.check_fixed(fixed)
    recipe = {
        "sparsity": _sparsity(sparsity, method, distribution),
        "distribution": distribution,
        "pattern": pattern,
        "exclude": sorted(exclude),
        "fixed": fixed,
    }
    arguments = {"method": method, "seed": seed, "recipe": recipe}
    warn_of_own_steps(model, stacklevel=3)
    with model.distribute_strategy.scope():
        if compute == "sparse":
            return _block_sparse(model, arguments)
        copy = _copy(model)
        if copies.is_graph(copy):
            inputs, outputs = copies.ends(copy)
            return SparsifiedGraph(inputs, outputs, name=model.name, **arguments)
        return SparsifiedModel(copy, **arguments)


def warn_of_own_steps(model, stacklevel):
    """Warns of methods of a model that its sparse copy will not have."""
    own = [name for name in _STEPS if getattr(type(model), name) is not getattr(keras.Model, name)]
    if own:
        warnings.warn(
            f"{type(model).__name__} defines {', '.join(own)}: a sparse model uses those of Keras "
            "and its own. To combine them, subclass `tf_rigl.SparseModel`.",
            stacklevel=stacklevel,
        )


def with_masks(model, masks) -> SparseModel:
    """A copy of a dense model with given masks, which it keeps.

    Args:
        model: a built `keras.Model`. One that Keras cannot clone is changed in place.
        masks: dict of path to boolean array.
    """
    warn_of_own_steps(model, stacklevel=4)
    found = {each.path: each for each in maskable.find(model, include_self=False)}
    pattern, numbered = patterns.get("unstructured"), {}
    for number, (path, mask) in enumerate(masks.items()):
        if path not in found or tuple(found[path].weight.shape) != mask.shape:
            raise ValueError(
                f"Argument `model` must have the weights that there are masks for: it has "
                f"{list(found)}. Received: a mask of shape {mask.shape} for {path!r}"
            )
        sparsity = 1 - np.count_nonzero(mask) / mask.size
        numbered[path] = (number, targets.Target(sparsity, pattern))
    arguments = {"method": methods.get("static"), "seed": 0, "recipe": {"masked": numbered}}
    with model.distribute_strategy.scope():
        copy = _copy(model)
        if copies.is_graph(copy):
            sparse = SparsifiedGraph(*copies.ends(copy), name=model.name, **arguments)
        else:
            sparse = SparsifiedModel(copy, **arguments)
    weights = {each.path: each.weight for each in found.values()}
    for item in sparse.masked_weights:  # Static has drawn masks of its own.
        item.weight.assign(weights[item.path])
        item.set_mask(masks[item.path])
    return sparse


def is_sparse(model) -> bool:
    """Whether a model has masks, or layers that store blocks."""
    layers = all_layers(model)
    return any(isinstance(each, (SparseModel, Masks)) for each in layers) or _holds_blocks(model)


def _holds_blocks(model):
    return bool(conversion.replacements(model))


def _block_sparse(model, arguments):
    """A sparse model in which layers store their blocks, where they can."""
    if not copies.is_graph(model):
        raise ValueError(
            "Argument `compute='sparse'` needs a model that is a graph of layers, functional or "
            f"Sequential, and built. Received: model={model!r}"
        )
    method, recipe = arguments["method"], arguments["recipe"]
    seed = resolve_seed(arguments["seed"])
    replaced, masked = conversion.plan(model, recipe, method, seed)
    makers = {
        key: functools.partial(conversion.replacement, *given) for key, given in replaced.items()
    }
    try:
        inputs, outputs = copies.ends(copies.attempt(model, makers))
    except copies.CannotCopyError as error:
        raise ValueError(
            "Argument `compute='sparse'` needs a model that Keras can clone: layers of your own "
            "have `get_config` and `from_config`, and none is shared with a nested model. "
            f"Received: model={model!r} ({error})"
        ) from error
    arguments = {"method": method, "seed": seed, "recipe": {"masked": masked}}
    return SparsifiedGraph(inputs, outputs, name=model.name, **arguments)


def _sparsity(sparsity, method, distribution):
    """The overall sparsity; a schedule that ends at another one is refused."""
    end = method.final_sparsity
    if sparsity is _LEFT_OUT and end is not None:
        return check_sparsity("sparsity", end)
    sparsity = check_sparsity("sparsity", sparsity)
    if (
        end is not None
        and not math.isclose(end, sparsity)
        and not isinstance(distribution, Mapping)
    ):
        raise ValueError(
            f"Argument `sparsity` must be that at which the schedule of {type(method).__name__} "
            f"ends, {end}, or left out. Received: sparsity={sparsity}"
        )
    return sparsity


def strip(model):
    """Makes an ordinary Keras model of a sparse one: the same weights, zeros in place.

    Args:
        model: a `tf_rigl.SparseModel`, or another model with layers of `tf_rigl.block_sparse`.

    Returns:
        A `keras.Model` that shares nothing with `model`, gives bit-equal predictions,
        and can be saved and loaded without tf_rigl.

    Raises:
        ValueError: if `model` is not sparse, holds what Keras cannot clone, or is a
            subclass of `tf_rigl.SparseModel` whose `call` Keras cannot trace.

    Example:

    >>> dense_class_model = tf_rigl.strip(sparse)
    >>> dense_class_model.save("model.keras")
    """
    is_model = isinstance(model, keras.Model)
    if not is_model or not (isinstance(model, SparseModel) or _holds_blocks(model)):
        raise ValueError(
            "Argument `model` must be a `tf_rigl.SparseModel`. "
            f"Received: model={model!r} (of type {type(model)})"
        )
    with model.distribute_strategy.scope():
        try:
            if isinstance(model, SparsifiedModel):
                return copies.attempt(model.model)
            is_graph = isinstance(model, Functional) or copies.is_graph(model)
            ends = copies.ends(model) if is_graph else _trace(model)
            return copies.attempt(keras.Model(*ends, name=model.name))
        except copies.CannotCopyError as error:
            raise ValueError(
                f"{model.name!r} cannot be stripped: Keras cannot clone a model or layer in it. "
                f"Give it `get_config` and `from_config`. ({error})"
            ) from error


def _trace(model):
    """The graph of a subclassed model, by calling its `call` on symbolic inputs."""
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise ValueError(
            f"{type(model).__name__} cannot be stripped: Keras does not know the shape of its "
            "input. Call it on data with one argument first, or build it as a functional model."
        )
    inputs = keras.tree.map_shape_structure(lambda s: keras.Input(batch_shape=s), shapes)
    try:
        return inputs, model.call(inputs)
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be stripped: its `call` cannot be traced as a graph of "
            f"Keras layers and operations ({error}). Build it as a functional model."
        ) from error


def _copy(model):
    """A copy of a model with its weights, or the model itself where Keras cannot."""
    try:
        return copies.attempt(model)
    except copies.CannotCopyError as error:
        warnings.warn(
            f"Keras cannot clone {model.name!r} (of type {type(model).__name__}), so it is changed "
            f"in place. Give it `get_config` and `from_config` to have it copied. ({error})",
            stacklevel=3,
        )
        return model
