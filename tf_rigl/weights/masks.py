"""The layer that holds mask variables, and functions that find the sparse weights of a model."""

import dataclasses
import functools
import warnings

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base import checkpoints
from tf_rigl._base.keras_internals import all_layers, in_stateless_scope
from tf_rigl.weights import adapters, guard, held, maskable
from tf_rigl.weights.masked_weight import MaskedWeight
from tf_rigl.weights.sparse_weight import SparseWeight, StoresSparse


@keras.saving.register_keras_serializable(package="tf_rigl")
class Masks(keras.layers.Layer):
    """Holds mask variables, so that Keras saves, copies and restores them.

    It computes nothing. Its owner keeps it in the attribute `_masks`: Keras restores private
    attributes last, so it has restored the weights when `load_own_variables` checks the masks
    against them.

    Attributes:
        items: list of `MaskedWeight`.
        refusal: the error that the last file raised, or None.
        left_frozen: function that returns the paths of the weights that were frozen when the
            masks were made, and train now, without masks.
        warns_of_others: bool, whether to warn of a training loop that does not move the masks.
    """

    def __init__(self, **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.items = []
        self._due = []
        self._starts = []
        self.refusal = None
        self.warns_of_others = True
        self.left_frozen = list
        self.built = True
        checkpoints.store_state(self, self._before_checkpoint, self._before_restoring)

    def add(self, found, target_sparsity, pattern, draw=None) -> MaskedWeight:
        """Adds a mask for a weight, all ones at first.

        Args:
            found: `tf_rigl.maskable.Maskable`, the weight.
            target_sparsity, pattern: see `MaskedWeight`.
            draw: function of the item that returns its initial mask. `settle` calls it.

        Returns:
            The new item, a `MaskedWeight`.
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
        held.refuse_quantization(found.layer)
        if item.is_sparse:
            guard.add(item.weight, mask, item.path, self)
        if draw is not None:
            self._due.append((item, draw))
        checkpoints.store_variable(self, mask, f"mask_{len(self.items) - 1}")
        return item

    def note_frozen(self, weights):
        """Notes the frozen weights, pairs of a path and a variable, that get no mask."""
        # A function, as Keras would track the variables.
        self.left_frozen = lambda: [path for path, weight in weights if weight.trainable]

    def add_state(self, names, start=None, first=0):
        """Adds the method's variables to each weight that lacks them, zeros at first.

        Args:
            names: see `tf_rigl.methods.Method.state_names`.
            start: function of an item and its `index` that fills the new variables and
                returns the initial mask; None if masks do not depend on these variables.
            first: int, the index of the first weight.
        """
        for number, item in enumerate(self.items):
            missing = [name for name in names if item.is_sparse and name not in item.state]
            if missing and start is not None:
                self._due = [pair for pair in self._due if pair[0] is not item]
                self._starts.append((item, functools.partial(start, index=first + number)))
                self._due.append(self._starts[-1])
            for name in missing:
                variable = self.add_weight(
                    shape=item.weight.shape,
                    dtype=item.weight.dtype,
                    initializer="zeros",
                    trainable=False,
                    name=f"{number}_{name}",
                )
                item.state[name] = variable
                checkpoints.store_variable(self, variable, f"{name}_{number}")

    def settle(self):
        """Draws the pending masks, and sets the masked weights to zero.

        It does nothing within a stateless scope, in which Keras builds some models: there
        variables have no values and cannot be set.
        """
        if not self._due or in_stateless_scope():
            return
        with tf.init_scope():  # TensorFlow may be tracing the first call.
            for item, draw in self._due:
                item.set_mask(draw(item))
        self._due = []

    def _before_checkpoint(self):
        """Draws the pending masks, so that a `tf.train.Checkpoint` stores them."""
        self.settle()
        return str(len(self.items)).encode()

    def _before_restoring(self, state):
        """Draws no pending masks any more: those of a `tf.train.Checkpoint` replace them."""
        if int(state) != len(self.items):
            raise ValueError(
                f"The checkpoint holds {int(state)} masks, the model has {len(self.items)}. "
                f"{checkpoints.BUILD_FIRST}"
            )
        self._due = []

    def save_own_variables(self, store):
        """Stores each mask under its number, and the method's variables next to it.

        Raises:
            ValueError: if a weight does not fit its mask: no such file could be read.
        """
        self.settle()
        check_strays(self.items, "saved")
        for number, item in enumerate(self.items):
            store[str(number)] = item.mask.numpy()
            for name, array in adapters.stored(item).items():
                store[f"{number}_{name}"] = array
            for name, variable in item.state.items():
                store[f"{number}_{name}"] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        """Restores masks and the method's variables, and checks that masks fit their weights.

        A file without masks (of a dense model) leaves the masks as they are, and applies them
        to the loaded weights.
        """
        if self.refusal is not None and not list(store.keys()):
            # After a failed load, Keras tries the same object again at its other places in
            # the model. The file has no entries there, but is not the file of a dense model.
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
        for number, item in enumerate(self.items):
            adapters.restore(item, _entries(store, f"{number}_lora_", f"{number}_"))
        for item, mask in zip(self.items, masks, strict=True):
            _check_fit(item, mask)
        for number, (item, mask) in enumerate(zip(self.items, masks, strict=True)):
            item.mask.assign(mask)
            # Variables that an older file lacks start at zero again.
            for name, variable in item.state.items():
                key = f"{number}_{name}"
                variable.assign(np.asarray(store[key]) if key in keys else np.zeros(mask.shape))
        self._due = []


def _entries(store, start, left_out):
    """Returns the arrays of a file whose keys begin so, without a first part of the keys."""
    keys = [key for key in store.keys() if key.startswith(start)]  # noqa: SIM118, not a dict
    return {key.removeprefix(left_out): np.asarray(store[key]) for key in keys}


def layers(model) -> list[Masks]:
    """Returns the layers that hold the masks of a model, in model order."""
    found = all_layers(model, include_self=False)
    return [layer for layer in found if isinstance(layer, Masks)]


def stores_sparse(model) -> bool:
    """Returns whether a built layer of a model stores a weight in another form than dense."""
    return any(each.built for each in all_layers(model) if isinstance(each, StoresSparse))


def find(model) -> list[SparseWeight]:
    """Finds the sparse weights of a model, in model order, under unique paths."""
    items: list = []
    taken: set = set()
    for layer in layers(model):
        layer.settle()
        held.check(model, layer.items)
        items += layer.items
    stored = _stored_sparse(model)
    if stored:  # Puts all of them in model order.
        order = {id(variable): number for number, variable in enumerate(model.weights)}
        items = sorted([*items, *stored], key=lambda item: order[id(item.weight)])
    return [dataclasses.replace(item, path=maskable.unique(item.path, taken)) for item in items]


def holds_any(layer) -> bool:
    """Returns True if a layer or a sublayer can hold sparse weights, even before it is built."""
    return any(isinstance(each, (Masks, StoresSparse)) for each in all_layers(layer))


def strays(weights) -> list:
    """Returns the paths of the weights that are not zero somewhere where their mask is 0."""
    return [item.path for item in weights if int(item.stray())]


def check_strays(weights, verb):
    """Raises if weights do not fit their masks.

    Args:
        weights: list of `SparseWeight`.
        verb: str, what cannot be done with the model, in a message.
    """
    if found := strays(weights):
        raise ValueError(
            f"The model cannot be {verb}: weights are not zero where their masks are 0, in "
            f"{_listed(found)}. Something outside of tf_rigl has set them, such as averages of an "
            "optimizer (`use_ema`) that another model applies. `apply_masks()` of the sparse model "
            "sets them to zero again."
        )


def warn_of_strays(weights, stacklevel):
    """Warns if weights do not fit their masks."""
    if found := strays(weights):
        warnings.warn(
            f"Weights are not zero where their masks are 0, in {_listed(found)}, so they are less "
            "sparse than their masks. Something outside of tf_rigl has set them. `apply_masks()` "
            "of the sparse model sets them to zero again.",
            stacklevel=stacklevel + 1,
        )


def _listed(paths):
    shown = ", ".join(map(repr, paths[:3]))
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"


def _stored_sparse(model):
    """Finds the weights of layers with a method `sparse_weight`, which store them as blocks."""
    found = []
    for layer, route, _ in maskable.walk(model):
        if layer.built and isinstance(layer, StoresSparse):
            found.append(layer.sparse_weight("/".join((*route, "kernel"))))
    return found


def _check_fit(item, mask):
    """Raises if an array does not fit a weight as its mask."""
    if mask.shape != tuple(item.weight.shape):
        raise ValueError(
            f"The mask of {item.path!r} does not fit its weight: "
            f"mask.shape={mask.shape}, weight.shape={tuple(item.weight.shape)}"
        )
    if mask.dtype != np.bool_:
        raise ValueError(f"The mask of {item.path!r} is not boolean: {mask.dtype}")
    if np.any(keras.ops.convert_to_numpy(item.weight)[~mask] != 0):
        raise ValueError(
            f"The mask of {item.path!r} does not fit its weight: some weights are not zero "
            "where the mask is 0."
        )
