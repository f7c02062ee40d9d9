"""Edge-popup: the best subnetwork of a random network, whose weights never train."""

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
    """Trains a score for each weight, and keeps the weights of highest score as they began.

    After every step the units of the highest scores are the mask, as many in each weight as
    its target sparsity says. The weights of a layer are frozen: where the mask is 1 a weight
    has its initial value, bit for bit, and elsewhere it is 0. The gradient of a score is
    the dense gradient of the loss with respect to the weight, times the frozen value
    (straight through the choice). The model's optimizer is built on the scores.

    Scores and frozen values are in `item.state["scores"]` and `item.state["values"]`
    of each of `SparseModel.masked_weights`, and are saved with the model. `trainable_weights`
    are the scores. In the paper a network does best at sparsities around 0.5.

    Args:
        weights: str, the frozen values. "initial": the weights that the model has when it is
            made sparse. "signed_constant": `sqrt(2 / fan_in)` with the signs of these; a layer
            that is to have no zeros (as ERK may have it) keeps the weights that it has.
        scale: bool, whether values are multiplied by `sqrt(1 / density)`, which makes up for
            the inputs that a unit lacks.
        score_initializer: str or `keras.initializers.Initializer`, the scores to begin with.
            The model's seed decides what it draws. "he_uniform" is Kaiming's.
        train_others: bool, whether what has no mask is trained too: biases, parameters of
            normalisation, and layers that stay dense. The paper's networks have no such.

    Raises:
        ValueError: if `weights` is unknown, or `scale` or `train_others` is not a bool.

    Example:

    >>> method = tf_rigl.methods.EdgePopup(weights="signed_constant", scale=True)
    >>> sparse = tf_rigl.sparsify(model, method, sparsity=0.5, distribution="uniform_all")

    Reference:

    - [What's Hidden in a Randomly Weighted Neural Network?](https://arxiv.org/abs/1911.13299),
      sections 3 and 4.
    """

    trains_scores = True
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

    def initial_mask(self, item, seed, index):
        """Draws the scores, takes the weights for frozen values, and chooses among them."""
        if not item.is_sparse:
            return tf.ones(item.shape, tf.bool)
        scores, values = (item.state[name] for name in self.state_names)
        scores.assign(self._draw(item, seed, index))
        values.assign(self._frozen(item))
        item.weight.assign(values)
        return item.pattern.select(tf.convert_to_tensor(scores.value), item.target_active())

    def _draw(self, item, seed, index):
        """Scores to begin with, others in each weight."""
        initializer, own = self.score_initializer, {}
        if hasattr(initializer, "get_config"):
            own = initializer.get_config()
        if "seed" in own:
            given = own["seed"] if isinstance(own["seed"], int) else 0
            drawn = np.random.SeedSequence([given, seed, index]).generate_state(1)[0]
            initializer = type(initializer).from_config({**own, "seed": int(drawn) % 2**31})
        return initializer(item.shape, dtype=item.weight.dtype)

    def _frozen(self, item):
        """The values that the weight is to have where its mask is 1."""
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

    def score_gradient(self, gradient, values):
        """The gradient of the scores.

        Args:
            gradient: tensor or `tf.IndexedSlices`, that of the loss with respect to the weight.
            values: the frozen values.
        """
        if isinstance(gradient, tf.IndexedSlices):
            rows = gradient.values * tf.gather(values, gradient.indices)
            return tf.IndexedSlices(rows, gradient.indices, gradient.dense_shape)
        return gradient * values

    def choose(self, scores, values, count, pattern):
        """The mask of the `count` units of highest score, and the weight under it."""
        mask = pattern.select(scores, count)
        return mask, tensors.where(mask, values)

    def update_function(self, entries):
        """`choose` as the training step calls it on a weight of so many entries."""
        return tensors.compiled_if_large(self.choose, entries)

    def train_flops(self, report, steps=None):
        """The gradient of the scores needs that of every weight, masked or not."""
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
