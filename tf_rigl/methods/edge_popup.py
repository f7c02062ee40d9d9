"""Edge-popup: finds a subnetwork of a random network, whose weights never train."""

import math

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import tensors
from tf_rigl._base.arguments import unknown_name
from tf_rigl.methods.base import Method
from tf_rigl.weights import maskable

WEIGHTS = ("initial", "signed_constant")


@keras.saving.register_keras_serializable(package="tf_rigl")
class EdgePopup(Method):
    """Trains a score for each weight entry, and keeps the frozen weights of highest score.

    After each step the mask of a weight holds the units of highest score, as many as its target
    sparsity leaves. Weights never train: where the mask is 1 an entry has its frozen value,
    elsewhere it is 0. The optimizer trains the scores s by a straight-through gradient,
    `dL/ds = dL/dw * v`, where v is the frozen value and `dL/dw` the dense gradient.

    `item.state["scores"]` and `item.state["values"]` of each of `SparseModel.masked_weights`
    hold scores and frozen values; they are saved with the model. `trainable_weights` are the
    scores. In the paper, networks do best at sparsities around 0.5.

    Args:
        weights: str, the frozen values. "initial": the weights that the model has when it is
            made sparse. "signed_constant": `sqrt(2 / fan_in)` with the signs of these. A layer
            that stays dense keeps its weights.
        scale: bool, whether to multiply frozen values by `sqrt(1 / density)`, to make up for
            missing inputs.
        score_initializer: str or `keras.initializers.Initializer`, the initial scores. The
            model's seed decides what it draws. "he_uniform" is Kaiming's.
        train_others: bool, whether to train weights without a mask too: biases, parameters of
            normalisation, and layers that stay dense. The paper's networks have none.

    Raises:
        ValueError: if `weights` is unknown, or `scale` or `train_others` is not a bool.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> method = tf_rigl.methods.EdgePopup(weights="signed_constant", scale=True)
    >>> sparse = tf_rigl.sparsify(model, method, sparsity=0.5, distribution="uniform_all")
    >>> [variable.name for variable in sparse.trainable_weights]
    ['0_scores']

    Reference:

    - [What's Hidden in a Randomly Weighted Neural Network?](https://arxiv.org/abs/1911.13299),
      sections 3 and 4.
    """

    trained_state = "scores"
    state_names = ("scores", "values")

    def __init__(
        self, weights="initial", scale=False, score_initializer="he_uniform", train_others=False
    ):
        if weights not in WEIGHTS:
            raise unknown_name("weights", weights, WEIGHTS, or_object=False)
        self.weights = weights
        self.scale = _check_bool("scale", scale)
        self.score_initializer = keras.initializers.get(score_initializer)
        self.train_others = _check_bool("train_others", train_others)
        self.freezes_others = not self.train_others

    def initial_mask(self, item, seed, index):
        """Draws scores, freezes the weights, and returns the mask of the highest scores."""
        if not item.is_sparse:
            return tf.ones(item.shape, tf.bool)
        scores, values = (item.state[name] for name in self.state_names)
        scores.assign(self._draw(item, seed, index))
        values.assign(self._frozen(item))
        item.weight.assign(values)
        return item.pattern.select(tf.convert_to_tensor(scores.value), item.target_active())

    def _draw(self, item, seed, index):
        """Draws initial scores, different ones for each weight."""
        initializer, own = self.score_initializer, {}
        if hasattr(initializer, "get_config"):
            own = initializer.get_config()
        if "seed" in own:
            given = own["seed"] if isinstance(own["seed"], int) else 0
            drawn = np.random.SeedSequence([given, seed, index]).generate_state(1)[0]
            initializer = type(initializer).from_config({**own, "seed": int(drawn) % 2**31})
        return initializer(item.shape, dtype=item.weight.dtype)

    def _frozen(self, item):
        """Returns the frozen values: those of the weight where its mask is 1."""
        values = tf.convert_to_tensor(item.weight.value)
        if self.weights == "signed_constant":
            constant = tf.constant(
                math.sqrt(2 / maskable.fan_in(item.layer, item.shape)), values.dtype
            )
            values = tf.where(values < 0, -constant, constant)
        if self.scale:
            density = item.target_active() / item.pattern.units(item.shape)
            values *= tf.constant(math.sqrt(1 / density), values.dtype)
        return values

    def trained_gradient(self, weight, gradient):
        """Returns the gradient of the scores: the weight's, times the frozen values."""
        values = tf.convert_to_tensor(weight.state["values"].value)
        if isinstance(gradient, tf.IndexedSlices):
            rows = gradient.values * tf.gather(values, gradient.indices)
            return tf.IndexedSlices(rows, gradient.indices, gradient.dense_shape)
        return gradient * values

    def after_optimizer(self, weights, compiled):
        """Sets masks to the highest of the new scores, and weights to the values under them."""
        pairs = []
        for weight in weights:
            state = [tf.convert_to_tensor(weight.state[n].value) for n in self.state_names]
            choose = compiled(self._choose, weight.shape)
            mask, value = choose(*state, tf.constant(weight.target_active()), weight.pattern)
            pairs += [(weight.mask, mask), (weight.weight, value)]
        return pairs

    def _choose(self, scores, values, count, pattern):
        """Returns the mask of the `count` units of highest score, and the weight under it."""
        mask = pattern.select(scores, count)
        return mask, tensors.where(mask, values)

    def train_flops(self, report, steps=None):
        """Returns `2 f_S + f_D`: scores need the dense gradient at every step."""
        del steps
        return 2.0 * report.flops + report.dense_flops

    def get_config(self):
        return {
            "weights": self.weights,
            "scale": self.scale,
            "score_initializer": keras.initializers.serialize(self.score_initializer),
            "train_others": self.train_others,
        }


def _check_bool(name, value):
    if not isinstance(value, bool):
        raise ValueError(f"Argument `{name}` must be True or False. Received: {name}={value!r}")
    return value
