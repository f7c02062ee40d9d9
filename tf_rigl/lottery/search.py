"""Iterative magnitude pruning: the search for a lottery ticket."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from tf_rigl import convert, distributions, files, maskable, patterns, targets
from tf_rigl._arguments import check_integer, unknown_name
from tf_rigl.lottery.ticket import Ticket, dense_weights, values
from tf_rigl.selection import top_k_mask


def find_ticket(
    model,
    fit,
    rounds=12,
    prune_fraction=0.2,
    rewind_step=0,
    scope="layer",
    *,
    rates=None,
    exclude=(),
    folder=None,
    seed=0,
):
    """Searches for a lottery ticket: train, prune, rewind, repeat.

    Each round trains the network from the same weights with the masks found so far, and then
    prunes those of the smallest magnitude among what is left. `rounds=1` is one-shot pruning.

    Args:
        model: a dense, built `keras.Model`. Its weights are where tickets begin. It is left as
            it is.
        fit: function of a `tf_rigl.SparseModel`: compiles and trains it, always alike, and
            returns a `keras.callbacks.History`, a dict of lists, or None. Its learning rate
            should begin where step `model.step` of training is, the rewind step.
        rounds: int, how often is pruned. There is one more training: that of the dense network.
        prune_fraction: float in (0, 1), the fraction of the weights left that a round prunes.
        rewind_step: int. 0: tickets begin at initialisation. k: with the weights that the dense
            network has after k steps.
        scope: "layer": the same fraction in every layer. "global": the smallest of all layers.
        rates: mapping of layer name (or path) to its own `prune_fraction`, such as half of it
            for the output layer; with `scope="layer"`.
        exclude: layers kept dense, as in `tf_rigl.sparsify`.
        folder: str or path. Each round is stored there as it ends, and a search that was cut off
            goes on after the last one that is there. None: nothing is stored.
        seed: int, by which all generators are seeded before each training
            (`keras.utils.set_random_seed`): a round that is begun again is the same.

    Returns:
        A list of `rounds + 1` `Ticket`s, the dense network first, each with the history of its
        training and the trained weights.

    Raises:
        ValueError: if an argument is out of range, or the folder holds another search.

    Example:

    >>> def fit(model):
    ...     model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    ...     return model.fit(x, y, epochs=2, verbose=0)
    >>> tickets = tf_rigl.lottery.find_ticket(model, fit, rounds=3)
    >>> [round(ticket.density, 3) for ticket in tickets]
    [1.0, 0.8, 0.64, 0.512]

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 2.
    - [Linear Mode Connectivity and the Lottery Ticket
      Hypothesis](https://arxiv.org/abs/1912.05671), for rewinding.
    """
    rounds = check_integer("rounds", rounds, 0)
    rewind_step = check_integer("rewind_step", rewind_step, 0)
    seed = check_integer("seed", seed, 0)
    _check_fraction("prune_fraction", prune_fraction)
    if scope not in ("layer", "global"):
        raise unknown_name("scope", scope, ("layer", "global"), or_object=False)
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "Argument `model` must be a built `keras.Model`, whose weights are those that tickets "
            f"begin with. Received: model={model!r}"
        )
    if convert.is_sparse(model):
        raise ValueError(f"Argument `model` must be dense. Received: model={model!r}")
    fractions = _fractions(model, prune_fraction, scope, rates, exclude)
    settings = {
        "prune_fraction": prune_fraction,
        "fractions": fractions,
        "scope": scope,
        "rewind_step": rewind_step,
        "seed": seed,
        "weights": _digest(model.weights),
    }
    store = _Store(folder, settings)
    shapes = {
        each.path: tuple(each.weight.shape) for each in maskable.find(model, include_self=False)
    }
    ticket = Ticket(
        {path: np.ones(shapes[path], bool) for path in fractions}, values(model.weights)
    )
    tickets = []
    for number in range(rounds + 1):
        ticket = dataclasses.replace(ticket, round=number)
        done = store.load(number) or _train(model, ticket, fit, rewind_step, seed)
        store.save(done)
        tickets.append(done)
        sparsities = {path: 1 - (1 - p) ** (number + 1) for path, p in fractions.items()}
        masks = _prune(model, done, sparsities, scope)
        ticket = Ticket(masks, done.weights, done.rewind_step)
    return tickets


def _check_fraction(argument, value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(
            f"Argument `{argument}` must be a number in (0, 1): the fraction that a round prunes. "
            f"Received: {argument}={value!r}"
        )


def _fractions(model, prune_fraction, scope, rates, exclude):
    """The fraction that a round prunes of each weight, by path."""
    if rates is not None and (scope == "global" or not isinstance(rates, Mapping)):
        raise ValueError(
            "Argument `rates` must be a mapping of layer name to the fraction that a round "
            f"prunes, with `scope='layer'`. Received: rates={rates!r}, scope={scope!r}"
        )
    for name, value in (rates or {}).items():
        _check_fraction(f"rates[{name!r}]", value)
    targets.check_exclude(exclude)
    found = maskable.find(model, include_self=False)
    recipe = {"pattern": patterns.get("unstructured"), "exclude": sorted(exclude)}
    wanted = targets.resolve(found, sparsity=prune_fraction, distribution="uniform_all", **recipe)
    own = targets.by_path("rates", [each for each in found if each.path in wanted], rates or {})
    return dict.fromkeys(wanted, prune_fraction) | own


def _train(model, ticket, fit, rewind_step, seed):
    """Trains a ticket; the dense network also tells where it was at the rewind step."""
    keras.utils.set_random_seed(seed)
    sparse = ticket.model(model)
    watcher = None
    if ticket.round == 0 and rewind_step:
        watcher = _Watcher(rewind_step)
        sparse._run.callbacks.append(watcher)
    result = fit(sparse)
    history = getattr(result, "history", result) or {}
    weights, trained = ticket.weights, values(dense_weights(sparse))
    if watcher is not None:
        if watcher.weights is None:
            raise ValueError(
                "Argument `rewind_step` must be a step of the training by `fit`, which ended at "
                f"step {sparse.step}. Received: rewind_step={rewind_step}"
            )
        weights = watcher.weights
    step = rewind_step if watcher is not None else ticket.rewind_step
    return dataclasses.replace(
        ticket, history=dict(history), trained=trained, weights=weights, rewind_step=step
    )


class _Watcher(keras.callbacks.Callback):
    """Keeps the weights that a model has after a number of steps."""

    def __init__(self, step):
        super().__init__()
        self.step, self.weights = step, None

    def on_train_batch_end(self, batch, logs=None):
        if self.weights is None and self.model.step >= self.step:
            if self.model.step > self.step:
                raise ValueError(
                    "Argument `rewind_step` must be a multiple of `steps_per_execution`. Received: "
                    f"rewind_step={self.step}, steps_per_execution={self.model.steps_per_execution}"
                )
            self.weights = values(dense_weights(self.model))


def _prune(model, ticket, sparsities, scope):
    """The masks after one more round: the largest magnitudes among what is left."""
    sparse = ticket.model(model, trained=True)
    scores = {item.path: tf.abs(item.dense()) for item in sparse.masked_weights}
    masks = {path: tf.constant(mask) for path, mask in ticket.masks.items()}
    sizes = {path: mask.size for path, mask in ticket.masks.items()}
    keep = {
        path: size - int(distributions.zeros(sparsities[path], size))
        for path, size in sizes.items()
    }
    if scope == "layer":
        return {
            path: top_k_mask(scores[path], max(1, keep[path]), among=masks[path]).numpy()
            for path in masks
        }
    pooled = tf.concat([tf.reshape(scores[path], [-1]) for path in masks], 0)
    left = tf.concat([tf.reshape(mask, [-1]) for mask in masks.values()], 0)
    chosen = top_k_mask(pooled, sum(keep.values()), among=left).numpy()
    parts = np.split(chosen, np.cumsum(list(sizes.values()))[:-1])
    return {
        path: part.reshape(mask.shape)
        for (path, mask), part in zip(ticket.masks.items(), parts, strict=True)
    }


def _digest(variables):
    """A checksum of weights, to tell one search from another."""
    digest = hashlib.sha256()
    for value in values(variables):
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


class _Store:
    """The folder of a search: a file for each round."""

    def __init__(self, folder, settings):
        self.folder = None if folder is None else pathlib.Path(folder)
        if self.folder is None:
            return
        text = files.to_json(settings)
        path = self.folder / "search.json"
        if not path.exists():
            files.write_text(path, text)
        elif json.loads(path.read_text(encoding="utf-8")) != json.loads(text):
            raise ValueError(
                "Argument `folder` holds another search: of other weights, or with other settings. "
                f"Received: folder={str(folder)!r}"
            )

    def _path(self, number):
        return self.folder / f"round_{number:02}.npz"

    def load(self, number):
        """The ticket of a round that has ended, or None."""
        if self.folder is None or not self._path(number).exists():
            return None
        return Ticket.load(self._path(number))

    def save(self, ticket):
        """Stores a round, if it is not there."""
        if self.folder is not None and not self._path(ticket.round).exists():
            ticket.save(self._path(ticket.round))
