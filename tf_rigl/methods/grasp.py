"""GraSP: prunes before training, so that the gradient keeps its flow."""

import keras

from tf_rigl.methods.snip import SNIP


@keras.saving.register_keras_serializable(package="tf_rigl")
class GraSP(SNIP):
    """Removes the weights whose removal reduces the norm of the gradient least, before training.

    With the loss gradient g and Hessian H of the masked weights w, the score of an entry is
    `-w * (H g)`. Entries of the highest scores are removed. `fit` uses its first batch for the
    scores and does not train on it; the masks never change again.

    The product `H g` takes a second derivative of the model, so that the first step costs as much
    as a few dense ones, and layers without one (such as an own operation with `tf.custom_gradient`
    of first order) cannot be pruned so.

    Args:
        scope: str, "layer": each weight gets the sparsity that the distribution gives it.
            "global": the scores of all weights are compared, as in the GraSP paper.

    Raises:
        ValueError: if `scope` is unknown.

    Example:

    >>> GraSP(scope="global")
    GraSP(scope='global')

    Reference:

    - [Picking Winning Tickets Before Training by Preserving Gradient
      Flow](https://arxiv.org/abs/2002.07376), section 4.
    """

    differentiates_twice = True

    def __init__(self, scope="layer"):
        super().__init__(scope)

    def drop_scores(self, weight, gradient, mask, seed):
        """Returns `weight * (H g)`, whose lowest entries are removed; `gradient` holds `H g`."""
        del mask, seed
        return weight * gradient

    def get_config(self):
        return {"scope": self.scope}
