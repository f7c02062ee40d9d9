"""Paths between two sparse solutions: straight ones, and trained Bezier curves."""

import dataclasses

import keras
import numpy as np

from tf_rigl._base.arguments import check_integer
from tf_rigl.analysis.curve import Curve
from tf_rigl.convert import sparsifying
from tf_rigl.weights import maskable, places
from tf_rigl.weights.masked_weight import MaskedWeight

SUBSPACES = ("masks", "dense")


@dataclasses.dataclass(frozen=True, eq=False)  # `==` of arrays is no bool.
class Path:
    """The loss along a path between two solutions.

    Attributes:
        positions: float array, from 0 (the first solution) to 1 (the second).
        losses: float array, the loss at each position.
        control: list of arrays, the weights of the middle point of a Bezier curve, in the order
            of the trainable weights of the stripped model; None for a straight path.
    """

    positions: np.ndarray
    losses: np.ndarray
    control: list | None = None

    @property
    def barrier(self) -> float:
        """How far the highest loss on the path is above the higher one of the ends."""
        return float(self.losses.max() - max(self.losses[0], self.losses[-1]))


def interpolate(first, second, loss, points=21):
    """Measures the loss on the straight path between two sparse models.

    All weights and statistics are interpolated. For a model with `BatchNormalization`, let `loss`
    first make the statistics anew, by a few batches with `training=True`.

    Args:
        first, second: `tf_rigl.SparseModel`s of one architecture, trained.
        loss: function of an ordinary Keras model, with the weights at a position, that returns a
            number.
        points: int, at least 2, the number of positions.

    Returns:
        A `Path`.

    Raises:
        ValueError: if the models differ in their weights' shapes, or `points` is out of range.

    Example:

    >>> other = tf_rigl.sparsify(model, sparsity=0.9, seed=1)
    >>> cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> path = tf_rigl.analysis.interpolate(
    ...     sparse, other, lambda model: float(cross_entropy(y, model(x))), points=5
    ... )
    >>> path.positions.tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 4.5.
    """
    _check_function("loss", loss)
    ends = _ends(first, second)
    positions = np.linspace(0, 1, check_integer("points", points, 2))
    return Path(positions, _losses(ends, positions, loss, {}))


def bezier(first, second, fit, loss, subspace="masks", points=21):
    """Trains a quadratic Bezier curve between two sparse models, and measures the loss on it.

    The curve is `(1 - t)^2 w_1 + 2 t (1 - t) w + t^2 w_2`. Its middle point w begins between the
    ends, and is trained with a random t for each batch.

    Args:
        first, second: `tf_rigl.SparseModel`s of one architecture, trained.
        fit: function of a Keras model that compiles and trains it, as for
            `tf_rigl.lottery.find_ticket`. The model is the curve: it computes what the
            architecture does at a random position, its regularizers included, and its weights are
            those of the middle point. Weights that are not trainable, statistics of
            `BatchNormalization` among them, are on the straight line.
        loss, points: as for `interpolate`.
        subspace: str, "masks": w is zero where neither of the two masks is set; "dense": w is
            dense.

    Returns:
        A `Path`.

    Raises:
        ValueError: as for `interpolate`, if `subspace` is unknown, or `fit` trains nothing.

    Example:

        path = tf_rigl.analysis.bezier(static, pruned, fit, loss, subspace="dense")

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 4.5.
    - [Loss Surfaces, Mode Connectivity, and Fast Ensembling of
      DNNs](https://arxiv.org/abs/1802.10026), section 3.
    """
    if subspace not in SUBSPACES:
        raise ValueError(
            f"Argument `subspace` must be one of {list(SUBSPACES)}. Received: subspace={subspace!r}"
        )
    _check_function("loss", loss)
    _check_function("fit", fit)
    ends = _ends(first, second)
    positions = np.linspace(0, 1, check_integer("points", points, 2))
    masks = _union(first, second, ends[0]) if subspace == "masks" else {}
    curve = Curve(*ends, masks)
    begin = curve.middle()
    fit(curve)
    middle = curve.middle()
    if all(np.array_equal(one, other) for one, other in zip(begin, middle, strict=True)):
        raise ValueError(
            "Argument `fit` must train the model that it gets: the weights are as they were. "
            f"Received: fit={fit!r}"
        )
    trained = {
        id(weight): value for weight, value in zip(ends[0].trainable_weights, middle, strict=True)
    }
    return Path(positions, _losses(ends, positions, loss, trained), middle)


def _check_function(name, function):
    """Raises if an argument is no function of a model."""
    if not callable(function) or isinstance(function, keras.losses.Loss):
        raise ValueError(
            f"Argument `{name}` must be a function of a Keras model, such as "
            f"`lambda model: ...`. Received: {name}={function!r}"
        )


def _ends(first, second):
    """Returns ordinary copies of both models."""
    copies = []
    for name, model in (("first", first), ("second", second)):
        if not sparsifying.is_sparse(model):
            raise ValueError(
                f"Argument `{name}` must be a `tf_rigl.SparseModel`. Received: {name}={model!r}"
            )
        copies.append(sparsifying.strip(model))
    shapes = [[tuple(weight.shape) for weight in copy.weights] for copy in copies]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Argument `second` must be a model of the same architecture as `first`: their weights "
            f"have other shapes. Received: first={first!r}, second={second!r}"
        )
    return copies


def _union(first, second, copy):
    """Returns the masks of either model, by the id of the weight in the copy."""
    ours, theirs = list(first.masks.values()), list(second.masks.values())
    if [mask.shape for mask in ours] != [mask.shape for mask in theirs]:
        raise ValueError(
            "Argument `second` must have masks for the same weights as `first`. Received: "
            f"first={first!r}, second={second!r}"
        )
    items = first.masked_weights
    if all(isinstance(item, MaskedWeight) for item in items):
        # Layers without names of their own have other ones in the copy.
        found = [each.weight for each in places.find(copy, places.entries(first, items))]
    else:  # Layers that store blocks: the copy is a graph, which keeps all names.
        named = {each.path: each.weight for each in maskable.find(copy, include_self=False)}
        found = [named[item.path] for item in items]
    triples = zip(found, ours, theirs, strict=True)
    return {id(weight): mask | other for weight, mask, other in triples}


def _losses(ends, positions, loss, middles):
    """Measures the loss at each position, in the first of two models.

    Args:
        ends: the two models.
        positions: float array.
        loss: function of a model.
        middles: dict of id of a weight of the first model to the middle point of its curve; other
            weights are on a straight line.

    Returns:
        A float array.
    """
    work = ends[0]
    ends = [[keras.ops.convert_to_numpy(weight) for weight in model.weights] for model in ends]
    found = []
    for t in positions:
        for weight, one, other in zip(work.weights, *ends, strict=True):
            if keras.backend.is_float_dtype(weight.dtype):
                weight.assign(_at(float(t), one, other, middles.get(id(weight))))
        found.append(float(loss(work)))
    return np.array(found)


def _at(t, one, other, middle):
    """Returns a point of a Bezier curve, or of a straight line if there is no middle point."""
    if middle is None:
        return (1 - t) * one + t * other
    return (1 - t) ** 2 * one + 2 * t * (1 - t) * middle + t**2 * other
