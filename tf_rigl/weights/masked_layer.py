"""`MaskedLayer`: a wrapper that makes one layer sparse."""

import functools

import keras
import numpy as np
import tensorflow as tf

from tf_rigl import patterns
from tf_rigl._base import keras_internals
from tf_rigl._base.arguments import check_layer_arguments, check_sparsity, unknown_name
from tf_rigl._base.delegation import show_call_of
from tf_rigl._base.workers import resolve_seed
from tf_rigl.weights import maskable, targets
from tf_rigl.weights.masks import Masks


def random_mask(item, seed, index=0):
    """Returns a random mask for a `MaskedWeight` at its target sparsity.

    Args:
        item: `MaskedWeight`.
        seed: int. The same seed and index give the same mask.
        index: int, the number of the weight in the model.

    Returns:
        A boolean tensor of the weight's shape.
    """
    rng = np.random.default_rng([seed, index])
    draw = functools.partial(rng.integers, -(2**31), 2**31, item.weight.shape, np.int32)
    return item.pattern.select(tf.constant(draw()), item.target_active())


@keras.saving.register_keras_serializable(package="tf_rigl")
class MaskedLayer(keras.layers.Wrapper):
    """Makes a layer sparse: holds a mask for each of its maskable weights.

    The layer draws a random mask when it is built, and sets the masked weights to exactly
    zero. A `tf_rigl.SparseModel` keeps them at zero while it trains, and its method changes
    the mask. The forward pass is therefore that of the wrapped layer alone.

    Args:
        layer: a `keras.layers.Layer` with maskable weights, see `tf_rigl.maskable`. The
            maskable weights of its sublayers are masked too.
        sparsity: float in [0, 1), the fraction of zeros in each weight.
        pattern: str or `tf_rigl.patterns.Pattern`, which entries are kept or dropped
            together: "unstructured", "block_16x1", "2:4", "litert".
        seed: int, for the random mask. Defaults to a random seed.
        initial_mask: str, "random", or "ones" for methods that begin dense and prune
            ("snip", "magnitude").
        **kwargs: arguments of `keras.layers.Layer`, such as `name`.

    Call arguments: those of the wrapped layer.

    Raises:
        ValueError: if `layer` is not a layer, or an argument is out of range; at
            build, if the layer has no maskable weights.

    Example:

    >>> layer = MaskedLayer(keras.layers.Dense(256), sparsity=0.9, seed=0)
    >>> layer(np.ones((1, 100), "float32")).shape
    TensorShape([1, 256])
    >>> int(np.count_nonzero(layer.layer.kernel))
    2560

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3.
    """

    def __new__(cls, layer=None, *args, **kwargs):
        self = super().__new__(cls, layer, *args, **kwargs)
        if isinstance(layer, keras.layers.Layer):
            show_call_of(self, layer)
        return self

    def __init__(
        self,
        layer,
        sparsity=0.9,
        pattern="unstructured",
        seed=None,
        initial_mask="random",
        **kwargs,
    ):
        if not isinstance(layer, keras.layers.Layer) or isinstance(layer, MaskedLayer):
            raise ValueError(
                "Argument `layer` must be a `keras.layers.Layer` that is not yet masked. "
                f"Received: layer={layer!r} (of type {type(layer)})"
            )
        check_layer_arguments(self, kwargs)
        kwargs.setdefault("name", f"masked_{layer.name}")
        kwargs.setdefault("dtype", layer.dtype_policy)
        kwargs.setdefault("autocast", layer.autocast)
        autocast = kwargs.pop("autocast")
        super().__init__(layer, **kwargs)
        self.autocast = autocast
        self.supports_masking = layer.supports_masking
        self.sparsity = check_sparsity("sparsity", sparsity)
        self.pattern = patterns.get(pattern)
        self.seed = resolve_seed(seed)
        if initial_mask not in ("random", "ones"):
            raise unknown_name("initial_mask", initial_mask, ("random", "ones"), or_object=False)
        self.initial_mask = initial_mask
        self._masks = Masks(name="masks")
        if layer.built:
            self.build(None)

    # The decorator lets Keras call the wrapped layer symbolically first, with all arguments.
    @keras_internals.default_build
    def build(self, input_shape=None, **shapes):
        if not self.layer.built:  # Attention takes `query_shape` and `value_shape`.
            first = () if input_shape is None and shapes else (input_shape,)
            self.layer.build(*first, **shapes)
        if self._masks.items:
            return  # It is built already.
        for index, found in enumerate(maskable.find(self.layer, adapted=True)):
            draw = None
            if self.initial_mask == "random":
                draw = functools.partial(random_mask, seed=self.seed, index=index)
            pattern = targets.fit(self.pattern, found)
            targets.check_allowed(pattern, self.sparsity, found.path)
            self._masks.add(found, self.sparsity, pattern, draw)
        self._masks.settle()
        if not self._masks.items:
            raise ValueError(
                "Argument `layer` must have maskable weights. `tf_rigl.maskable` lists the layers "
                "that do; a custom layer names its weights with `get_prunable_weights()`. "
                f"Received: layer={self.layer.name!r} (of type {type(self.layer).__name__})"
            )

    def __call__(self, *args, **kwargs):
        self._masks.settle()
        return super().__call__(*args, **kwargs)

    def get_build_config(self):
        return {"layer": self.layer.get_build_config()}

    def build_from_config(self, config):
        if config.get("layer") and not self.layer.built:
            self.layer.build_from_config(config["layer"])
        if self.layer.built and not self.built:
            self.build(None)

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, *args, **kwargs):
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)

    def get_config(self):
        config = {
            "sparsity": self.sparsity,
            "pattern": keras.saving.serialize_keras_object(self.pattern),
            "seed": self.seed,
            "initial_mask": self.initial_mask,
        }
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["pattern"] = keras.saving.deserialize_keras_object(
            config["pattern"], custom_objects=custom_objects
        )
        return super().from_config(config, custom_objects=custom_objects)
