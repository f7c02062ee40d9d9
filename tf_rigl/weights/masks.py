"""The masks themselves: variables beside the weights that they belong to."""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base.keras_internals import all_layers, in_stateless_scope
from tf_rigl.weights import maskable
from tf_rigl.weights.masked_weight import MaskedWeight
from tf_rigl.weights.sparse_weight import SparseWeight


@keras.saving.register_keras_serializable(package="tf_rigl")
class Masks(keras.layers.Layer):
    """Holds mask variables, so that Keras saves, copies and restores them.

    It takes no part in the computation. Whatever owns one keeps it in the attribute
    `_masks`: Keras restores private attributes last, so the weights are there when
    the masks are checked against them.

    Attributes:
        items: list of `MaskedWeight`.
        refusal: the error with which the last file was refused, or None.
    """

    def __init__(self, **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.items = []
        self._due = []
        self._starts = []
        self.refusal = None
        self.built = True

    def add(self, found, target_sparsity, pattern, draw=None) -> MaskedWeight:
        """Adds a mask for a weight, all ones at first.

        Args:
            found: `tf_rigl.maskable.Maskable`, the weight.
            target_sparsity, pattern: see `MaskedWeight`.
            draw: function of the item that returns the mask to begin with, called by
                `settle`.
        """
        mask = self.add_weight(
            shape=found.weight.shape,
            dtype="bool",
            initializer="ones",
            trainable=False,
            name=found.path.replace("/", "_"),
        )
        sparsity = float(target_sparsity)
        item = MaskedWeight(found.path, found.weight, mask, sparsity, pattern, found.layer)
        self.items.append(item)
        if draw is not None:
            self._due.append((item, draw))
        return item

    def add_state(self, names, start=None, first=0):
        """Adds what a method keeps for each weight, zeros at first, where it is not there.

        Args:
            names: see `tf_rigl.methods.Method.state_names`.
            start: function of an item and its `index` that sets what has been added, and
                returns the mask to begin with; or None: masks do not depend on it.
            first: int, the index of the first weight.
        """
        for number, item in enumerate(self.items):
            missing = [name for name in names if item.is_sparse and name not in item.state]
            if missing and start is not None:
                self._due = [pair for pair in self._due if pair[0] is not item]
                self._starts.append((item, functools.partial(start, index=first + number)))
                self._due.append(self._starts[-1])
            for name in missing:
                item.state[name] = self.add_weight(
                    shape=item.weight.shape,
                    dtype=item.weight.dtype,
                    initializer="zeros",
                    trainable=False,
                    name=f"{number}_{name}",
                )

    def settle(self):
        """Draws the masks that are due, and sets the weights under them to zero.

        Keras builds some models within a stateless scope, in which variables have no
        values yet and none can be set: there it does nothing.
        """
        if not self._due or in_stateless_scope():
            return
        with tf.init_scope():  # The first call may be one that is being traced.
            for item, draw in self._due:
                item.set_mask(draw(item))
        self._due = []

    def save_own_variables(self, store):
        """Stores each mask under its number, and the method's state beside it."""
        self.settle()
        for number, item in enumerate(self.items):
            store[str(number)] = item.mask.numpy()
            for name, variable in item.state.items():
                store[f"{number}_{name}"] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        """Restores masks and states, and checks that the masks fit their weights.

        A file without masks (of a dense model) leaves them as they are: they are
        applied to the weights that were loaded.
        """
        if self.refusal is not None and not list(store.keys()):
            # Keras tries an object that could not be loaded again wherever it meets it
            # next, and there the file has nothing: that is not a dense model's file.
            raise self.refusal
        try:
            self._load(store)
            self.refusal = None
        except ValueError as error:
            self.refusal = error
            raise

    def _load(self, store):
        keys = list(store.keys())
        if not keys:
            self._due += self._starts
            self.settle()
            for item in self.items:
                item.zero_masked(item.weight)
            return
        stored = sum(key.isdigit() for key in keys)
        if stored != len(self.items):
            raise ValueError(
                f"The file holds {stored} masks, the model has {len(self.items)} masked weights."
            )
        masks = [np.asarray(store[str(number)]) for number in range(len(self.items))]
        for item, mask in zip(self.items, masks, strict=True):
            _check_fit(item, mask)
        for number, (item, mask) in enumerate(zip(self.items, masks, strict=True)):
            item.mask.assign(mask)
            # What an older file has not begins anew.
            for name, variable in item.state.items():
                key = f"{number}_{name}"
                variable.assign(np.asarray(store[key]) if key in keys else np.zeros(mask.shape))
        self._due = []


def layers(model) -> list[Masks]:
    """What holds the masks of a model, in model order."""
    found = all_layers(model, include_self=False)
    return [layer for layer in found if isinstance(layer, Masks)]


def find(model) -> list[SparseWeight]:
    """Finds the sparse weights of a model, in model order, under unique paths."""
    items, taken = [], set()
    for layer in layers(model):
        layer.settle()
        items += layer.items
    stored = _stored_sparse(model)
    if stored:  # Among the others as in the model.
        order = {id(variable): number for number, variable in enumerate(model.weights)}
        items = sorted([*items, *stored], key=lambda item: order[id(item.weight)])
    return [dataclasses.replace(item, path=maskable.unique(item.path, taken)) for item in items]


def holds_any(layer) -> bool:
    """True if a layer, or one in it, is made to hold sparse weights; it need not be built."""
    return any(
        isinstance(each, Masks) or hasattr(each, "sparse_weight") for each in all_layers(layer)
    )


def _stored_sparse(model):
    """Finds the weights of layers that store them sparse, by their method `sparse_weight`."""
    found = []
    for layer, route, _ in maskable.walk(model):
        if layer.built and hasattr(layer, "sparse_weight"):
            found.append(layer.sparse_weight("/".join((*route, "kernel"))))
    return found


def _check_fit(item, mask):
    """Raises if an array cannot be the mask of a weight as it stands."""
    if mask.shape != tuple(item.weight.shape):
        raise ValueError(
            f"The mask of {item.path!r} does not fit its weight: "
            f"mask.shape={mask.shape}, weight.shape={tuple(item.weight.shape)}"
        )
    if mask.dtype != np.bool_:
        raise ValueError(f"The mask of {item.path!r} is not boolean: {mask.dtype}")
    if np.any(keras.ops.convert_to_numpy(item.weight)[~mask] != 0):
        raise ValueError(
            f"The mask of {item.path!r} does not fit its weight: there are weights other than "
            "zero where the mask is 0."
        )
