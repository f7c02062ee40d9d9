"""`sparsify` makes an ordinary Keras model sparse; `strip` makes an ordinary model of it again."""

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
from tf_rigl.convert import copies, initializing, trained
from tf_rigl.convert.own_training import SparsifiedTrainer, own_parts
from tf_rigl.convert.sparsified import SparsifiedGraph, SparsifiedModel
from tf_rigl.training.sparse_model import SparseModel
from tf_rigl.weights import maskable, masks, targets, unmasked
from tf_rigl.weights.masks import Masks

# The default sparsity: an object of its own, so that it differs from a 0.9 that the caller passes.
_DEFAULT_SPARSITY = type("Default", (float,), {})(0.9)


def sparsify(
    model,
    method="rigl",
    sparsity=_DEFAULT_SPARSITY,
    distribution="erk",
    pattern="unstructured",
    exclude=(),
    seed=None,
    *,
    fixed=None,
    compute="masked",
    initialization="model",
):
    """Makes a sparse copy of a Keras model. Compile and fit it like any Keras model.

    Frozen weights (`trainable=False`) are left as they are and do not count, unless `fixed` or a
    `distribution` that is a mapping names them. A warning names what stays dense, if it is much.

    Args:
        model: a `keras.Model`: Sequential, functional or subclassed, built or not. It is
            not changed, unless it is a subclassed model that Keras cannot clone: then it is
            changed in place, with a warning. Active entries keep their trained weights.
        method: str or `tf_rigl.methods.Method`, how masks start and change: "static", "set",
            "rigl", "snfs", "granet", "srigl", "mest", "snip", "grasp", "magnitude", "acdc",
            "ste", "sr_ste", "edge_popup".
        sparsity: float in [0, 1), the fraction of zeros over all maskable entries of the
            model. Defaults to 0.9, or to the final sparsity of the schedule of
            `MagnitudePruning`.
        distribution: "uniform" (the first layer stays dense), "erdos_renyi", "erk"; a
            function with the signature of `tf_rigl.distributions.erdos_renyi`; or a
            mapping of layer name to sparsity. With a mapping, `sparsity` is not used,
            and layers without a key stay dense.
        pattern: str or `tf_rigl.patterns.Pattern`, which entries are kept or dropped
            together: "unstructured"; "block_16x1" or other blocks of inputs by outputs;
            "2:4" or other n:m; "litert", the blocks that LiteRT runs fast in each layer.
        exclude: list or tuple of str, layers that stay dense. Each is the name of a layer,
            its path, such as "encoder/dense", or a regular expression to search for in
            names and paths.
        seed: int, the seed of the masks and of the random choices of the method. By default
            it is drawn from Python's `random`, which `keras.utils.set_random_seed` seeds.
        fixed: mapping of layer name (or path) to the exact sparsity of that layer. The
            distribution balances the other layers.
        compute: "masked": zeros are stored and multiplied like any number. "sparse": needs a
            pattern of blocks. Each layer that can then stores and computes active blocks
            only, the same number in each column of blocks: see `tf_rigl.block_sparse`.
            `tf_rigl.report` shows which layers do.
        initialization: "model": active entries keep the weights of the model. "sparse": weights
            that are random still are multiplied by `sqrt(f / f_j)`, where an output `j` has
            `f_j` active incoming entries of `f`; if the layer's initializer counts outputs
            (Glorot's), by the root of the ratio of what it counts. So outputs begin as large
            as those of the dense model. Trained weights, and those whose initializer counts
            neither (`Orthogonal`, `RandomNormal`), stay; a warning says so if that is all.

    Returns:
        A `tf_rigl.SparseModel`, not compiled.

    Raises:
        ValueError: before any training, if an argument is out of range or has an unknown
            name, or if the model has no maskable weight.

    Example:

    >>> sparse = tf_rigl.sparsify(model, method="rigl", sparsity=0.9, seed=0)
    >>> print(f"{sparse.sparsity:.2f}")
    0.90
    >>> [(item.path, f"{item.target_sparsity:.2f}") for item in sparse.masked_weights]
    [('hidden/kernel', '0.93'), ('output/kernel', '0.78')]

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3.
    - [Gradient Flow in Sparse Neural Networks](https://arxiv.org/abs/2010.03533), section 3.1,
      of the initialization.
    """
    if not isinstance(model, keras.Model):
        legacy = any(cls.__module__.startswith("tf_keras") for cls in type(model).__mro__)
        hint = (
            "This is a model of Keras 2 (`tf_keras`). If tensorflow-model-optimization prunes it, "
            "convert it with `tf_rigl.interop.from_tfmot`. "
        )
        raise ValueError(
            f"Argument `model` must be a `keras.Model`. {hint if legacy else ''}"
            f"Received: model={model!r} (of type {type(model)})"
        )
    if is_sparse(model):
        raise ValueError(f"Argument `model` {_why_sparse(model)} Received: model={model!r}")
    method = methods.get(method)
    pattern = method.suited(patterns.get(pattern))
    if compute not in ("masked", "sparse"):
        raise unknown_name("compute", compute, ("masked", "sparse"), or_object=False)
    if compute == "sparse":
        pattern = conversion.check(pattern, method)
    initializing.check(initialization, method)
    if method.scope == "global" and pattern.constant_fan_in:
        raise ValueError(
            "Argument `pattern` must not have a constant fan-in with `scope='global'`: all weights "
            "share one number of blocks, and the scores decide how many each one gets. Received: "
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
    scaling = initializing.get(initialization)
    with model.distribute_strategy.scope():
        if compute == "sparse":
            sparse = _block_sparse(model, arguments, scaling)
        else:
            if model.built:
                recipe["names"] = maskable.names(maskable.find(model, include_self=False))
            if scaling is not None:
                # Until an unbuilt model has masks, a file may store its recipe.
                recipe["initialization"] = scaling if model.built else initialization
            sparse = _masked(_copy(model), model.name, arguments)
    trained.warn_of_random_masks(sparse, model, new=scaling.scaled if scaling else ())
    if compute == "sparse":  # In other models the masks come with the warning.
        unmasked.warn(sparse, [item.weight for item in sparse.masked_weights])
    return sparse


def _masked(model, name, arguments):
    """Returns the sparse model of a model, which becomes a part of it."""
    if own_parts(model):
        return SparsifiedTrainer(model, name=name, **arguments)
    if copies.is_plain_graph(model):
        return SparsifiedGraph(*copies.ends(model), name=name, **arguments)
    return SparsifiedModel(model, name=name, **arguments)


def with_masks(model, arrays) -> SparseModel:
    """Makes a sparse copy of a dense model with given masks, which stay as they are.

    Args:
        model: a built `keras.Model`. It is changed in place if Keras cannot clone it.
        arrays: dict of path to boolean array.
    """
    found = {each.path: each for each in maskable.find(model, include_self=False)}
    pattern, numbered = patterns.get("unstructured"), {}
    for number, (path, mask) in enumerate(arrays.items()):
        if path not in found or tuple(found[path].weight.shape) != mask.shape:
            raise ValueError(
                f"Argument `model` must have a weight for each mask; it has {list(found)}. "
                f"Received: a mask of shape {mask.shape} for {path!r}"
            )
        sparsity = 1 - np.count_nonzero(mask) / mask.size
        numbered[path] = (number, targets.Target(sparsity, pattern))
    recipe = {"masked": numbered, "names": maskable.names(found.values())}
    arguments = {"method": methods.get("static"), "seed": 0, "recipe": recipe}
    with model.distribute_strategy.scope():
        sparse = _masked(_copy(model), model.name, arguments)
    weights = {each.path: each.weight for each in found.values()}
    for item in sparse.masked_weights:  # These replace the random masks of "static".
        item.weight.assign(weights[item.path])
        item.set_mask(arrays[item.path])
    return sparse


def is_sparse(model) -> bool:
    """Returns whether a model has masks, or layers that store blocks."""
    layers = all_layers(model)
    return any(isinstance(each, (SparseModel, Masks)) for each in layers) or _holds_blocks(model)


def _why_sparse(model):
    """Says why a model is sparse already, and what can be done with it."""
    if isinstance(model, SparseModel):
        return "is sparse already. `tf_rigl.strip` makes it an ordinary model."
    names = [each.name for each in maskable.sublayers(model) if masks.holds_any(each)]
    return (
        f"is sparse already: it holds {', '.join(map(repr, names[:3]))}. To train it as it is, "
        "pass its inputs and outputs to `tf_rigl.SparseModel(inputs, outputs, method=...)`. To "
        "begin anew, make it dense by `tf_rigl.strip`."
    )


def _holds_blocks(model):
    return bool(conversion.replacements(model))


def _block_sparse(model, arguments, scaling=None):
    """Makes a sparse model in which each layer that can stores its blocks."""
    if own := own_parts(model):
        raise ValueError(
            "Argument `compute='sparse'` needs a model that trains as `keras.Model` does. "
            f"Received: model={model!r}, whose class defines {', '.join(own)}"
        )
    if not copies.is_graph(model):
        raise ValueError(
            "Argument `compute='sparse'` needs a model that is a graph of layers, functional or "
            f"Sequential, and built. Received: model={model!r}"
        )
    method, recipe = arguments["method"], arguments["recipe"]
    seed = resolve_seed(arguments["seed"])
    scaled = {} if scaling is None else {"factors": scaling.factors}
    replaced, masked, names = conversion.plan(model, recipe, method, seed, **scaled)
    makers = {
        key: functools.partial(conversion.replacement, *given) for key, given in replaced.items()
    }
    try:
        inputs, outputs = copies.ends(copies.try_copy(model, makers))
    except copies.CannotCopyError as error:
        raise ValueError(
            "Argument `compute='sparse'` needs a model that Keras can clone: custom layers must "
            "have `get_config` and `from_config`, and no layer may be shared with a nested model. "
            f"Received: model={model!r} ({error})"
        ) from error
    recipe = {"masked": masked, "names": names, "initialization": scaling or "model"}
    arguments = {"method": method, "seed": seed, "recipe": recipe}
    sparse = SparsifiedGraph(inputs, outputs, name=model.name, **arguments)
    if scaling is not None:
        scaling.warn()
    return sparse


def _sparsity(sparsity, method, distribution):
    """Returns the overall sparsity; raises if the method's schedule ends at another one."""
    end = method.final_sparsity
    if sparsity is _DEFAULT_SPARSITY and end is not None:
        return check_sparsity("sparsity", end)
    sparsity = check_sparsity("sparsity", sparsity)
    if (
        end is not None
        and not math.isclose(end, sparsity)
        and not isinstance(distribution, Mapping)
    ):
        raise ValueError(
            f"Argument `sparsity` must be {end}, the final sparsity of the schedule of "
            f"{type(method).__name__}, or must not be given. Received: sparsity={sparsity}"
        )
    return sparsity


def strip(model):
    """Makes an ordinary Keras model of a sparse one. Dropped entries are zeros in its weights.

    Args:
        model: a `tf_rigl.SparseModel`, or another model with layers of `tf_rigl.MaskedLayer` or
            `tf_rigl.block_sparse`.

    Returns:
        A `keras.Model` that shares nothing with `model`, gives bit-equal predictions,
        and can be saved and loaded without tf_rigl.

    Raises:
        ValueError: if `model` is not sparse, has a model or layer that Keras cannot clone,
            or is a subclass of `tf_rigl.SparseModel` whose `call` Keras cannot trace.

    Example:

    >>> ordinary = tf_rigl.strip(sparse)
    >>> type(ordinary).__module__.split(".")[0]
    'keras'
    >>> np.array_equal(ordinary.predict(x, verbose=0), sparse.predict(x, verbose=0))
    True
    >>> ordinary.save("model.keras")
    """
    is_model = isinstance(model, keras.Model)
    if not is_model or not is_sparse(model):
        dense = "This model is dense: use it as it is. " if is_model else ""
        raise ValueError(
            "Argument `model` must be a `tf_rigl.SparseModel`, or a model with layers of "
            f"`tf_rigl.MaskedLayer` or `tf_rigl.block_sparse`. {dense}"
            f"Received: model={model!r} (of type {type(model)})"
        )
    if not model.built and not isinstance(model, Functional):
        raise ValueError(
            "Argument `model` is not built, so it has no masks yet: call it on data first. "
            f"Received: model={model!r}"
        )
    masks.check_strays(masks.find(model), "stripped")
    with model.distribute_strategy.scope():
        try:
            if isinstance(model, SparsifiedModel):
                return copies.try_copy(model.model)
            is_graph = isinstance(model, Functional) or copies.is_graph(model)
            ends = copies.ends(model) if is_graph else _trace(model)
            return copies.try_copy(keras.Model(*ends, name=model.name), _strippers(model))
        except copies.CannotCopyError as error:
            raise ValueError(
                f"{model.name!r} cannot be stripped: Keras cannot clone a model or layer in it. "
                f"Give it `get_config` and `from_config`. ({error}) The weights hold the zeros: "
                "where `sparsify` changed the model in place, it is the stripped model."
            ) from error


def _strippers(model):
    """Returns what replaces the layers of a model that are `SparseModel`s, by id, or None."""
    inner = all_layers(model, include_self=False)
    nested = [each for each in inner if isinstance(each, SparseModel)]
    if not nested:
        return None
    inside = {id(each) for one in nested for each in all_layers(one, include_self=False)}
    makers = {
        id(each): functools.partial(conversion.ordinary, each)
        for each in conversion.replacements(model)
    }
    makers |= {id(each): lambda each=each: (strip(each), lambda: None) for each in nested}
    return {key: maker for key, maker in makers.items() if key not in inside}


def _trace(model):
    """Returns the ends of the graph that a subclassed model's `call` makes."""
    shapes = (model.get_build_config() or {}).get("input_shape")
    if shapes is None:
        raise ValueError(
            f"{type(model).__name__} cannot be stripped: Keras does not know the shape of its "
            "input. First call it on data with one argument, or build it as a functional model."
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
    """Returns a copy of a model with its weights, or the model itself if Keras cannot clone it."""
    try:
        return copies.try_copy(model)
    except copies.CannotCopyError as error:
        warnings.warn(
            f"Keras cannot clone {model.name!r} (of type {type(model).__name__}), so it is changed "
            f"in place. It can be neither stripped nor saved as a `.keras` file. ({error})",
            stacklevel=3,
        )
        return model
