"""`factorize` and `merge`: from ordinary layers to factorized ones, and back."""

import keras

from tf_rigl._base import notices
from tf_rigl._base.arguments import check_number
from tf_rigl._base.keras_internals import all_layers, nodes_of
from tf_rigl.convert import copies
from tf_rigl.factorized import ranks
from tf_rigl.factorized.attention import MultiHeadAttention
from tf_rigl.factorized.base import INITIALIZATIONS, Factorized
from tf_rigl.factorized.convolution import Conv2D
from tf_rigl.factorized.dense import Dense, EinsumDense
from tf_rigl.training.sparse_model import SparseModel

_KINDS = {cls.ordinary: cls for cls in (Dense, EinsumDense, Conv2D)}
_ATTENTION = keras.layers.MultiHeadAttention
_CONVOLUTIONS = tuple(
    getattr(keras.layers, name) for name in ("Conv2D", "SeparableConv2D", "DepthwiseConv2D")
)


def factorize(
    model,
    *,
    scale=None,
    parameters=None,
    initialization="spectral",
    decay=0.0,
    exclude=(),
    ends=False,
):
    """Copies a model with factorized layers in place of Dense, EinsumDense and Conv2D.

    Each kernel becomes the product of two small ones. Train the copy as any Keras model (compile
    it anew), make it sparse with `tf_rigl.sparsify` if wanted, and `merge` it for deployment.
    Attention stays as it is, but for the decay: its projections are factors already. Frozen layers
    stay as they are.

    Args:
        model: `keras.Model`, a graph of layers (functional or Sequential), trained or not.
        scale: float in (0, 1], the rank of each layer as a fraction of the smaller side of its
            kernel. Exactly one of `scale` and `parameters` must be given.
        parameters: float in (0, 1), what the factors have of the parameters that the kernels of
            the factorized layers had. Ranks are chosen by one scale for all layers.
        initialization: str, "spectral": the factors of the model's kernels, by singular value
            decomposition; "layer": factors are drawn anew by each layer's initializer.
        decay: float, at least 0, the Frobenius decay, see `tf_rigl.factorized.Dense`. It takes
            the place of the layers' `kernel_regularizer`.
        exclude: sequence of str, names of layers that stay as they are.
        ends: bool, whether the first convolution, the last layer, and layers whose outputs are
            those of the model are factorized too. In the paper they stay as they are.

    Returns:
        A `keras.Model` with the same names of layers, not compiled.

    Raises:
        ValueError: if an argument is out of range, a name in `exclude` is unknown, `model` is not
            a graph of layers, has no layer to factorize, or one that is quantized or has LoRA.

    Example:

    >>> inputs = keras.Input((28, 28, 1))
    >>> x = keras.layers.Conv2D(32, 3, name="stem")(inputs)
    >>> x = keras.layers.Conv2D(64, 3, name="conv")(x)
    >>> outputs = keras.layers.Dense(10, name="head")(keras.layers.Flatten()(x))
    >>> small = tf_rigl.factorized.factorize(keras.Model(inputs, outputs), parameters=0.2)
    >>> round(small.get_layer("conv").count_params() / (3 * 3 * 32 * 64), 1)
    0.2

    Reference:

    - [Initialization and Regularization of Factorized Neural
      Layers](https://arxiv.org/abs/2105.01029).
    """
    _check_arguments(model, scale, parameters, initialization)
    check_number("decay", decay, at_least=0)
    layers = _layers(model)
    chosen = _chosen(model, layers, exclude, ends)
    attention = [x for x in layers if type(x) is _ATTENTION and x.name not in exclude]
    if not chosen:
        raise ValueError(
            "Argument `model` must have layers of Dense, EinsumDense or Conv2D to factorize, "
            f"beside its first convolution, its last layer and those excluded. Received: {model!r}"
        )
    options = {"initialization": initialization, "decay": decay}
    if parameters is not None:
        sizes = []
        for layer in chosen:
            probe = _new(layer, scale=1.0, **options)
            sizes.append(probe.sizes_for(probe.kernel_shape(_input_shape(layer))))
        scale = ranks.scale_for(parameters, sizes)
        options["scale"] = max(scale, 1e-9)
    else:
        options["scale"] = scale
    _warn_of_size(chosen, options["scale"])
    makers = {id(layer): _maker(layer, options) for layer in chosen}
    if decay:
        makers |= {id(layer): _attention_maker(layer, options) for layer in attention}
    return copies.copied(model, makers, exact=False)


def merge(model):
    """Copies a model with ordinary layers in place of factorized ones, for deployment.

    A factorized layer becomes two small ordinary layers in a `keras.Sequential` of its name, or
    one layer with the product as its kernel, whichever is smaller.

    Args:
        model: `keras.Model`, a graph of layers.

    Returns:
        A `keras.Model` of Keras's own layers, with the same outputs to float tolerance.

    Raises:
        ValueError: if `model` is not a graph of layers, has no factorized layer, or has one inside
            a custom layer or with LoRA.

    Example:

    >>> layers = [keras.Input((64,)), tf_rigl.factorized.Dense(32, rank=4, name="hidden")]
    >>> merged = tf_rigl.factorized.merge(keras.Sequential(layers))
    >>> [type(layer).__name__ for layer in merged.get_layer("hidden").layers]
    ['Dense', 'Dense']
    """
    _check_graph(model)
    layers = _layers(model)
    makers = {id(layer): _merger(layer) for layer in layers if isinstance(layer, Factorized)}
    attention = [layer for layer in layers if isinstance(layer, MultiHeadAttention)]
    makers |= {id(layer): _attention_merger(layer) for layer in attention}
    kinds = Factorized, MultiHeadAttention
    inside = [x.path for x in all_layers(model) if isinstance(x, kinds) and id(x) not in makers]
    if inside or not makers:
        hint = f" Those inside other layers cannot be merged: {inside}." if inside else ""
        raise ValueError(
            "Argument `model` must be a graph with factorized layers. "
            f"Received: model={model!r}.{hint}"
        )
    for layer in layers:
        parts = [layer.first, layer.second] if isinstance(layer, Factorized) else []
        _refuse_changed(parts, "merge", layer.path)
    return copies.copied(model, makers, exact=False)


def _check_arguments(model, scale, parameters, initialization):
    _check_graph(model)
    if (scale is None) == (parameters is None):
        raise ValueError(
            "Exactly one of the arguments `scale` and `parameters` must be given. "
            f"Received: scale={scale!r}, parameters={parameters!r}"
        )
    if scale is not None:
        ranks.check_scale(scale)
    if initialization not in INITIALIZATIONS:
        raise ValueError(
            f"Argument `initialization` must be one of {list(INITIALIZATIONS)}. "
            f"Received: initialization={initialization!r}"
        )


def _check_graph(model):
    if isinstance(model, SparseModel):
        raise ValueError(
            "Argument `model` must be an ordinary model: factorize it first, then sparsify; strip "
            f"a sparse model before it is merged. Received: model={model!r}"
        )
    if not isinstance(model, keras.Model) or not copies.is_graph(model):
        raise ValueError(
            "Argument `model` must be a built graph of layers, a functional or Sequential "
            f"`keras.Model`. Received: model={model!r} (of type {type(model)})"
        )


def _layers(model) -> list:
    """Returns the layers of a graph and of the graphs in it, in order, each once."""
    found = []
    for layer in model.layers:
        is_inner = isinstance(layer, keras.Model) and copies.is_graph(layer)
        found += _layers(layer) if is_inner else [layer]
    return list(dict.fromkeys(found))


def _refuse_changed(layers, verb, path):
    """Raises if kernels are no longer ordinary ones."""
    for layer in layers:
        how = "has LoRA" if getattr(layer, "lora_enabled", False) else "is quantized"
        if how == "has LoRA" or getattr(layer, "quantization_mode", None):
            raise ValueError(
                f"Argument `model` must have ordinary kernels: {verb} it before LoRA is enabled or "
                f"layers are quantized. Received: a model whose layer {path!r} {how}"
            )


def _is_output(model, layer):
    """Returns whether what a layer puts out is an output of the model."""
    ours = {id(tensor) for node in nodes_of(layer) for tensor in node.output_tensors}
    return any(id(tensor) in ours for tensor in keras.tree.flatten(model.outputs))


def _chosen(model, layers, exclude, ends) -> list:
    """Returns the layers that are factorized."""
    unknown = sorted(set(exclude) - {layer.name for layer in layers})
    if unknown:
        names = [layer.name for layer in layers if type(layer) in _KINDS]
        raise ValueError(
            f"Argument `exclude` must name layers of the model, such as {names}. "
            f"Received: exclude={exclude!r}, of which {unknown} are unknown"
        )
    found = [layer for layer in layers if type(layer) in _KINDS]
    convolutions = [x for x in layers if isinstance(x, _CONVOLUTIONS)]
    heads = [layer for layer in found if _is_output(model, layer)]
    kept = set() if ends else {id(layer) for layer in convolutions[:1] + found[-1:] + heads}
    chosen = [
        layer
        for layer in found
        if id(layer) not in kept
        and layer.name not in exclude
        and getattr(layer, "groups", 1) == 1
        and layer.kernel_constraint is None
        and layer.trainable
    ]
    for layer in chosen:
        _refuse_changed([layer], "factorize", layer.path)
    return chosen


def _warn_of_size(chosen, scale):
    """Warns if factors are no smaller than the kernels that they replace."""
    before = after = 0
    for layer in chosen:
        probe = _new(layer, scale=1.0, decay=0.0)
        stack, *sides = probe.sizes_for(probe.kernel_shape(_input_shape(layer)))
        before += stack * sides[0] * sides[1]
        after += stack * ranks.chosen(None, scale, *sides) * sum(sides)
    if after >= before:
        notices.warn(
            f"The factors have {after:,} parameters, no fewer than the {before:,} of the kernels "
            "that they replace. A square kernel is halved by a quarter of its side as the rank: "
            "pass a smaller `scale`, or `parameters`, the share that is wanted."
        )


def _input_shape(layer):
    return tuple(layer.get_build_config()["input_shape"])


def _new(layer, **options):
    """Returns a factorized layer, not built, in place of an ordinary one."""
    config = layer.get_config()
    if options["decay"]:
        config["kernel_regularizer"] = None
    return _KINDS[type(layer)].from_config({**config, **options, "trainable": layer.trainable})


def _maker(layer, options):
    def make():
        new = _new(layer, **options)
        if options["initialization"] == "spectral":
            new.set_later()

        def fill():
            if options["initialization"] == "spectral":
                new.set_kernel(keras.ops.convert_to_numpy(layer.kernel))
            if layer.bias is not None:
                new.second.bias.assign(layer.bias)

        return new, fill

    return make


def _attention_maker(layer, options):
    def make():
        config = {**layer.get_config(), "kernel_regularizer": None, "decay": options["decay"]}
        new = MultiHeadAttention.from_config(config)

        def fill():
            new.set_weights(layer.get_weights())
            if options["initialization"] == "spectral" and not layer.get_config()["use_bias"]:
                new.balance()

        return new, fill

    return make


def _merger(layer):
    def make():
        parts = layer.small(layer.kernel_rank) if layer.is_smaller else [layer.plain()]
        new = parts[0]
        if len(parts) > 1:
            parts[-1].activity_regularizer = layer.activity_regularizer
            inputs = keras.Input(_any_size(layer)[1:])
            new = keras.Sequential([inputs, *parts], name=layer.name)
            new.supports_masking = layer.supports_masking
        new.trainable = layer.trainable

        def fill():
            if layer.is_smaller:
                for part, old in zip(parts, (layer.first, layer.second), strict=True):
                    part.set_weights(old.get_weights())
            else:
                bias = [] if layer.second.bias is None else [layer.second.bias]
                new.set_weights([keras.ops.convert_to_numpy(w) for w in (layer.product(), *bias)])

        return new, fill

    return make


def _any_size(layer):
    """Returns the shape of a layer's inputs, with None where its calls may differ."""
    shape = list(_input_shape(layer))
    if len(nodes_of(layer)) > 1:
        channels = len(shape) - 1
        if layer.get_config().get("data_format") == "channels_first":
            channels = 1
        if not isinstance(layer, EinsumDense):
            shape = [size if axis == channels else None for axis, size in enumerate(shape)]
    return shape


def _attention_merger(layer):
    def make():
        config = {key: value for key, value in layer.get_config().items() if key != "decay"}
        new = _ATTENTION.from_config(config)
        return new, lambda: new.set_weights(layer.get_weights())

    return make
