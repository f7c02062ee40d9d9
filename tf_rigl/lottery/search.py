"""Iterative magnitude pruning: the search for a lottery ticket."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping

import keras
import numpy as np

from tf_rigl import distributions, patterns
from tf_rigl._base import files, store
from tf_rigl._base.arguments import check_integer, check_number, unknown_name
from tf_rigl._base.keras_internals import all_layers
from tf_rigl.convert import copies, sparsifying
from tf_rigl.lottery.ticket import Ticket, dense_weights, values
from tf_rigl.patterns.selection import top_k_mask
from tf_rigl.training import loop
from tf_rigl.weights import maskable, targets

_DESCRIPTION = "search.json"


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
    prunes the active weights of smallest magnitude. `rounds=1` is one-shot pruning.

    Args:
        model: a dense, built `keras.Model`; tickets start from its weights. It does not change
            (if Keras cannot clone it, it gets its weights back at the end).
        fit: function of a `tf_rigl.SparseModel`, which compiles and trains it in the same way
            each time, and returns a `keras.callbacks.History`, a dict of lists, or None.
            Training starts at step `model.step`, the rewind step: see `from_step` for its
            learning rate. Make data sets that are shuffled anew at each pass, such as those of
            `tf_rigl.data.load`, inside `fit`: one made outside continues where the last
            training ended.
        rounds: int, the number of pruning rounds. The dense network is trained before the first
            one. After n rounds a fraction (1 - prune_fraction)^n of the weights is active.
        prune_fraction: float in (0, 1), the fraction of the active weights that a round prunes.
        rewind_step: int. 0: tickets start from the initial weights. k: from the weights of the
            dense network after k steps of `model.fit`. `fit` decides how long tickets train: to
            end where the dense network did, it must train for `model.step` steps less.
        scope: "layer": each round prunes the same fraction of every layer. "global": it prunes
            the smallest weights of all layers, which may leave a layer without any.
        rates: mapping of layer name (or path) to its own `prune_fraction`, such as half of it
            for the output layer; only with `scope="layer"`.
        exclude: layers kept dense, as in `tf_rigl.sparsify`.
        folder: str or path. Each finished round is stored there; the same call continues after
            the last stored round, and one with more rounds does only those. It must be empty,
            absent, or that of this search; `fit` is not compared. None: nothing is stored.
        seed: int, seeds all generators before each training (`keras.utils.set_random_seed`), so
            that a repeated round gives the same result.

    Returns:
        A list of `rounds + 1` `Ticket`s, the dense network first, each with the history of its
        training and the trained weights.

    Raises:
        ValueError: if an argument is out of range, `fit` does not train the model (and there
            are rounds), or the folder holds another search or a damaged file.

    Example:

    >>> def fit(model):
    ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ...     model.compile("adam", loss, metrics=["accuracy"])
    ...     return model.fit(x, y, epochs=2, verbose=0)
    >>> tickets = tf_rigl.lottery.find_ticket(model, fit, rounds=3)
    >>> [f"{ticket.density:.2f}" for ticket in tickets]
    ['1.00', '0.80', '0.64', '0.51']
    >>> sparse = tickets[-1].model(model)  # With the initial weights; compile and train it.

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 2.
    - [Linear Mode Connectivity and the Lottery Ticket
      Hypothesis](https://arxiv.org/abs/1912.05671), for rewinding.
    """
    rounds = check_integer("rounds", rounds, 0)
    rewind_step = check_integer("rewind_step", rewind_step, 0)
    seed = check_integer("seed", seed, 0)
    prune_fraction = _check_fraction("prune_fraction", prune_fraction)
    if not callable(fit):
        raise ValueError(
            "Argument `fit` must be a function of a model, which compiles and trains it. "
            f"Received: fit={fit!r}"
        )
    if scope not in ("layer", "global"):
        raise unknown_name("scope", scope, ("layer", "global"), or_object=False)
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "Argument `model` must be a built `keras.Model`: tickets start from its weights. "
            f"Received: model={model!r}"
        )
    if sparsifying.is_sparse(model):
        raise ValueError(f"Argument `model` must be dense. Received: model={model!r}")
    fractions = _fractions(model, prune_fraction, scope, rates, exclude)
    settings = {
        "fractions": fractions,
        "scope": scope,
        "rewind_step": rewind_step,
        "seed": seed,
        "weights": _digest(model.weights),
        "layers": _layers(model),
    }
    finished = _Rounds(folder, settings)
    found = {each.path: each.weight for each in maskable.find(model, include_self=False)}
    masks = {path: np.ones(tuple(found[path].shape), bool) for path in fractions}
    places = {id(variable): place for place, variable in enumerate(model.weights)}
    ticket, tickets = Ticket(masks, values(model.weights)), []
    before = values(copies.state(model))
    for number in range(rounds + 1):
        done = finished.load(ticket)
        if done is None:
            try:
                done = _train(model, ticket, fit, rounds, rewind_step, seed)
            finally:
                # If the model cannot be cloned, the training has changed the model itself.
                for variable, value in zip(copies.state(model), before, strict=True):
                    variable.assign(value)
            finished.save(done)
        tickets.append(done)
        if number < rounds:
            scores = {path: np.abs(done.trained[places[id(found[path])]]) for path in fractions}
            _check_finite(scores, number)
            sparsities = {path: 1 - (1 - p) ** (number + 1) for path, p in fractions.items()}
            masks = _prune(done.masks, scores, sparsities, scope)
            _check_not_empty(masks, done.masks, number + 1)
            ticket = Ticket(masks, done.weights, done.rewind_step, number + 1)
    return tickets


def _check_fraction(argument, value):
    what = "the fraction that a round prunes"
    return check_number(argument, value, above=0, below=1, what=what)


def _fractions(model, prune_fraction, scope, rates, exclude):
    """Returns the fraction of each weight that a round prunes, by path."""
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


def _train(model, ticket, fit, rounds, rewind_step, seed):
    """Trains a ticket; the dense network's weights at the rewind step become the ticket's."""
    keras.utils.set_random_seed(seed)
    sparse = ticket.model(model)
    watcher = None
    if ticket.round == 0 and rewind_step:
        watcher = _Watcher(rewind_step)
        loop.of(sparse).callbacks.append(watcher)
    before = values(dense_weights(sparse))
    history = _history(fit(sparse))
    changes = {"history": history, "trained": values(dense_weights(sparse))}
    if rounds:
        _check_trained(sparse, before, changes["trained"], ticket)
    if watcher is not None:
        if watcher.weights is None:
            raise ValueError(
                "Argument `rewind_step` must be a step of the `model.fit` that argument `fit` "
                f"calls; it ended at step {sparse.step}. Received: rewind_step={rewind_step}"
            )
        changes |= {"weights": watcher.weights, "rewind_step": rewind_step}
    return dataclasses.replace(ticket, **changes)


def _check_not_empty(masks, before, number):
    """Warns of layers that this round of a global search has emptied."""
    empty = [path for path, mask in masks.items() if before[path].any() and not mask.any()]
    if empty:
        warnings.warn(
            f"Round {number} leaves no weights in {empty}: the layers after them do not see the "
            "input. `scope='layer'` keeps some in each layer.",
            stacklevel=3,
        )


def _check_finite(scores, number):
    """Warns if weights are not finite, because their magnitude then says nothing."""
    bad = [path for path, score in scores.items() if not np.isfinite(score).all()]
    if bad:
        warnings.warn(
            f"The training of round {number} ended with weights that are not finite, in {bad}: "
            "pruning them is arbitrary. Try a lower learning rate.",
            stacklevel=3,
        )


def _check_trained(sparse, before, after, ticket):
    """Raises if `fit` trained nothing: pruning would only see the initial weights."""
    same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    if same and sparse.step == ticket.rewind_step:
        raise ValueError(
            "Argument `fit` must train the model that it is called with. No weight changed in "
            f"round {ticket.round}."
        )


def _history(result):
    """Returns the result of `fit` as a dict of lists that JSON can hold."""
    found = result.history if isinstance(result, keras.callbacks.History) else result
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ValueError(
            "Argument `fit` must be a function that returns a `keras.callbacks.History`, a dict of "
            f"lists, or None. It returned: {result!r}"
        )
    history = {}
    for key, value in found.items():
        try:
            history[str(key)] = json.loads(json.dumps(value, default=_plain))
        except (TypeError, ValueError) as error:
            # An entry that JSON cannot hold is no reason to lose the training.
            warnings.warn(
                f"History {key!r} is left out of the ticket, as JSON cannot hold it: {error}",
                stacklevel=4,
            )
    return history


def _plain(value):
    """Converts arrays and tensors, of any number of axes, to lists and numbers."""
    return keras.ops.convert_to_numpy(value).tolist()


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


def _prune(masks, scores, sparsities, scope):
    """Returns the masks after one more round, which keep the active weights of highest score."""
    if scope == "layer":
        keep = {
            path: max(1, mask.size - int(distributions.zeros(sparsities[path], mask.size)))
            for path, mask in masks.items()
        }
        return {
            path: top_k_mask(scores[path], keep[path], among=mask).numpy()
            for path, mask in masks.items()
        }
    sizes = [mask.size for mask in masks.values()]
    keep = sum(sizes) - sum(
        distributions.zeros_together([sparsities[path] for path in masks], sizes)
    )
    pooled = np.concatenate([scores[path].ravel() for path in masks])
    left = np.concatenate([mask.ravel() for mask in masks.values()])
    chosen = top_k_mask(pooled, keep, among=left).numpy()
    parts = np.split(chosen, np.cumsum(sizes)[:-1])
    return {
        path: part.reshape(mask.shape)
        for (path, mask), part in zip(masks.items(), parts, strict=True)
    }


def _digest(variables):
    """Returns a checksum of weights, which tells one search from another."""
    digest = hashlib.sha256()
    for value in values(variables):
        digest.update(f"{value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _layers(model):
    """Returns a checksum of the layers' types and simple settings, such as activations and rates.

    It leaves out names, because Keras numbers them, and settings that are objects, because
    their configuration may differ in each process.
    """
    found = []
    for layer in all_layers(model, include_self=False):
        if isinstance(layer, keras.Model):
            continue  # The loop visits its layers too.
        try:
            config = layer.get_config()
        except NotImplementedError:  # A user's class.
            config = {}
        own = {key: value for key, value in config.items() if key != "name" and _is_simple(value)}
        found.append((type(layer).__name__, sorted(own.items())))
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _is_simple(value):
    if isinstance(value, (list, tuple)):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, (bool, int, float, str))


class _Rounds:
    """The finished rounds of a search, stored in a folder; without a folder, nothing is stored.

    Args:
        folder: str or path, or None.
        settings: dict that describes the search.
    """

    def __init__(self, folder, settings):
        self._store = None
        if folder is None:
            return
        folder = files.check_folder(folder, {_DESCRIPTION: ("settings",)})
        path = folder / _DESCRIPTION
        if not store.read_description(path, settings):
            store.write_json(path, {"settings": settings})
        self._store = store.Store(
            folder,
            ending=".npz",
            read=Ticket.load,
            write=lambda path, ticket: ticket.save(path),
            remedy="Delete it and the files of later rounds to repeat these rounds.",
        )

    def load(self, ticket):
        """Returns the ticket after its training if that is stored, or None."""
        if self._store is None:
            return None
        name = _name(ticket)
        return self._store.get(name, check=lambda stored: _check_same(stored, ticket))

    def save(self, ticket):
        """Stores a finished round."""
        if self._store is not None:
            self._store.add(_name(ticket), ticket)


def _name(ticket):
    """Returns the name of a round in its folder."""
    return f"round_{ticket.round:02}"


def _check_same(stored, ticket):
    """Raises if a stored ticket is not the given one after its training."""
    same = stored.masks.keys() == ticket.masks.keys() and all(
        np.array_equal(stored.masks[path], mask) for path, mask in ticket.masks.items()
    )
    shapes = [np.shape(value) for value in ticket.weights]
    if (
        not same
        or stored.round != ticket.round
        or [np.shape(value) for value in stored.weights] != shapes
        or [np.shape(value) for value in stored.trained or ()] != shapes
    ):
        raise ValueError("it holds another ticket than this search found")
