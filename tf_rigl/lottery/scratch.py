"""Training a pruned network from scratch or fine-tuning it, to see if it needs its weights."""

import dataclasses
import math
from typing import NamedTuple

import keras

from tf_rigl._base.arguments import check_integer, check_number
from tf_rigl.accounting import reporting
from tf_rigl.convert import copies, sparsifying
from tf_rigl.lottery.controls import redrawn, reinitialised
from tf_rigl.lottery.ticket import Ticket


class Trained(NamedTuple):
    """The result of a training.

    Attributes:
        model: the trained `keras.Model`.
        epochs: int, the number of epochs of the training.
        result: the value that `fit` returned.
    """

    model: keras.Model
    epochs: int
    result: object


def scratch_e(pruned, dense, fit, epochs, seed=0) -> Trained:
    """Trains the pruned network from new random weights, for as many epochs as the dense one.

    Args:
        pruned: `Ticket` of `dense`, or a smaller `keras.Model` after removal of channels.
        dense: the dense `keras.Model` before pruning.
        fit: function of a model and a number of epochs, which compiles and trains the model.
        epochs: int, the epochs of the dense network.
        seed: int, the seed of the weights and of the training; it seeds all generators
            (`keras.utils.set_random_seed`).

    Returns:
        A `Trained`. The models passed in do not change.

    Reference:

    - [Rethinking the Value of Network Pruning](https://arxiv.org/abs/1810.05270), section 3.
    """
    epochs = check_integer("epochs", epochs, 1)
    if isinstance(_checked(pruned), Ticket):
        model = reinitialised(pruned, dense, seed).model(dense)
    else:
        model = redrawn(pruned, seed)
    return _train(model, fit, epochs, seed)


def scratch_b(pruned, dense, fit, epochs, seed=0, at_most=2.0) -> Trained:
    """Trains like `scratch_e`, but with the FLOPs of the dense training, so for more epochs.

    Args:
        pruned, dense, fit, epochs, seed: as for `scratch_e`.
        at_most: float, the largest factor of the epochs; infinity for no limit.

    Returns:
        A `Trained`, whose epochs are `scratch_b_epochs(...)`.

    Reference:

    - [Rethinking the Value of Network Pruning](https://arxiv.org/abs/1810.05270), section 3,
      which at most doubles the epochs on ImageNet.
    """
    return scratch_e(pruned, dense, fit, scratch_b_epochs(pruned, dense, epochs, at_most), seed)


def scratch_b_epochs(pruned, dense, epochs, at_most=2.0) -> int:
    """Returns epochs times dense FLOPs over pruned FLOPs, rounded; see `scratch_b`."""
    epochs = check_integer("epochs", epochs, 1)
    what = "the largest factor of the epochs"
    at_most = check_number("at_most", at_most, at_least=1, finite=False, what=what)
    if isinstance(_checked(pruned), Ticket):
        report = reporting.report(pruned.model(dense))
        flops, dense_flops = report.flops, report.dense_flops
    else:
        flops, dense_flops = (reporting.report(each).dense_flops for each in (pruned, dense))
    factor = min(dense_flops / flops if flops else math.inf, at_most)
    if math.isinf(factor):
        raise ValueError(
            "Argument `at_most` must be a finite number for a network without FLOPs. "
            f"Received: at_most={at_most!r}, pruned={pruned!r}"
        )
    return round(epochs * factor)


def fine_tune(pruned, dense, fit, epochs, before=None, seed=0) -> Trained:
    """Trains the pruned network further, from the trained weights that pruning kept.

    Args:
        pruned, dense, fit: as for `scratch_e`.
        epochs: int, the number of further epochs.
        before: for a `Ticket`, the ticket of the round before, whose trained weights were pruned.
        seed: int, seeds all generators before the training.

    Returns:
        A `Trained`. The models passed in do not change.

    Reference:

    - [Rethinking the Value of Network Pruning](https://arxiv.org/abs/1810.05270), section 3.
    """
    epochs = check_integer("epochs", epochs, 1)
    if isinstance(_checked(pruned), Ticket):
        before_it = isinstance(before, Ticket) and before.round == pruned.round - 1
        if not before_it or before.trained is None:
            raise ValueError(
                "Argument `before` must be the ticket of the round before, with its trained "
                f"weights. Received: before={before!r}, pruned={pruned!r}"
            )
        inherited = dataclasses.replace(pruned, weights=before.trained, rewind_step=0)
        model = inherited.model(dense)
    else:
        model = copies.copied(pruned)
    return _train(model, fit, epochs, seed)


def _checked(pruned):
    if not isinstance(pruned, (Ticket, keras.Model)):
        raise ValueError(
            "Argument `pruned` must be a `tf_rigl.lottery.Ticket` or a `keras.Model`. "
            f"Received: pruned={pruned!r}"
        )
    if isinstance(pruned, keras.Model) and sparsifying.is_sparse(pruned):
        raise ValueError(
            "Argument `pruned` must be a `tf_rigl.lottery.Ticket`, or a smaller `keras.Model` "
            f"without masks. Received: pruned={pruned!r}"
        )
    return pruned


def _train(model, fit, epochs, seed):
    keras.utils.set_random_seed(seed)
    return Trained(model, epochs, fit(model, epochs))
